"""Options that several commands have, declared once, and what settings are called on the command
line.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from ditplan.profiles.catalog import cluster_names, model_names
from ditplan.profiles.errors import Command, Setting
from ditplan.profiles.hosts_formats import HostsFormat
from ditplan.profiles.model import Mode
from ditplan.profiles.workload import Dtype

RENAMED = {"warmup_steps": "warmup", "max_latency_s": "max-latency", "budget_s": "budget"}
"""Settings whose option isn't called as they are in Python."""

Model = Annotated[
    str,
    typer.Option(
        help="A shipped model's name, or a folder saved by diffusers.", autocompletion=model_names
    ),
]
OptionalModel = Annotated[
    str | None,
    typer.Option(
        help="A shipped model's name, or a folder saved by diffusers.", autocompletion=model_names
    ),
]
Cluster = Annotated[
    str | None,
    typer.Option(
        help="A recorded cluster's name or a file made by `profile`.", autocompletion=cluster_names
    ),
]
ExactCluster = Annotated[
    str,
    typer.Option(
        help="A recorded cluster's name or a file made by `profile`.", autocompletion=cluster_names
    ),
]
Hosts = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="File of hosts, one a line, or a list such as n[1-4]:8,m1:4; without it those of the "
        "Slurm, PBS or LSF job that this runs in, else this machine.",
    ),
]
Format = Annotated[HostsFormat, typer.Option("--hosts-format", help="Whose file of hosts it is.")]
Include = Annotated[
    str | None,
    typer.Option(
        metavar="HOSTS",
        help="Use these hosts alone: n1:0,2@n3 are devices 0 and 2 of n1 and all of n3.",
    ),
]
Exclude = Annotated[
    str | None, typer.Option(metavar="HOSTS", help="Use all hosts but these, written likewise.")
]
Interface = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="The network interface by which hosts talk, on each of them; without it the one by "
        "which their routes lead to each other.",
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would run where, and start no rank.")
]
Report = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.html",
        help="Write a page for a browser with figures of all this; needs `ditplan[report]`.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Refresh = Annotated[
    bool,
    typer.Option(
        "--refresh", help="Measure the cluster anew, even if devices and software are the same."
    ),
]
Gpus = Annotated[int | None, typer.Option(min=1, help="How many GPUs (or CPU ranks).")]
Weights = Annotated[
    Path | None, typer.Option(help="Folder of a diffusers pipeline with real weights.")
]
BackendName = Annotated[
    str,
    typer.Option(
        help="Whose runtime is priced: native (the one that runs), dry-run, xdit or diffusers."
    ),
]
Pixels = Annotated[int | None, typer.Option(min=1, help="Pixels; the model's usual if left out.")]
Count = Annotated[int | None, typer.Option(min=1, help="The model's usual if left out.")]
Degree = Annotated[
    int | None, typer.Option(min=1, help="Fix this degree; left out, `simulate` has 1.")
]


@dataclass(frozen=True, kw_only=True)
class HostOptions:
    """Which hosts take part, and how they talk."""

    hosts: Hosts = None
    hosts_format: Format = "ditplan"
    include: Include = None
    exclude: Exclude = None
    interface: Interface = None


@dataclass(frozen=True, kw_only=True)
class WorkloadOptions:
    """What is asked of the model."""

    height: Pixels = None
    width: Pixels = None
    frames: Count = None
    steps: Count = None
    text_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of the longest text; the model's usual.")
    ] = None
    guidance: Annotated[
        bool | None, typer.Option("--guidance/--no-guidance", help="Classifier-free guidance.")
    ] = None
    batch: Count = None
    dtype: Annotated[Dtype | None, typer.Option(help="float32 is the only one on CPUs.")] = None


@dataclass(frozen=True, kw_only=True)
class MeshOptions:
    """Degrees, PipeFusion's settings and the mode."""

    cfg: Degree = None
    pipefusion: Degree = None
    ulysses: Degree = None
    ring: Degree = None
    dp: Degree = None
    patches: Annotated[
        int | None,
        typer.Option(min=1, help="Patches of PipeFusion; it has stages by --pipefusion."),
    ] = None
    warmup_steps: Annotated[
        int | None,
        typer.Option("--warmup", min=1, help="PipeFusion's first steps, on the whole picture."),
    ] = None
    mode: Annotated[
        Mode | None,
        typer.Option(help="Demand this way of executing each rank's share (graph: CUDA graph)."),
    ] = None
    vae_parallel: Annotated[
        int | None,
        typer.Option(min=1, help="How many ranks decode a picture together; 1 if left out."),
    ] = None


def given(options: WorkloadOptions | MeshOptions) -> dict[str, Any]:
    """What options say, by the names of the settings."""
    return {field.name: getattr(options, field.name) for field in fields(options)}


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command with the options of each parameter that is a dataclass of them, in its place."""
    parameters = inspect.signature(command).parameters.values()
    groups: dict[str, Any] = {
        p.name: p.annotation for p in parameters if is_dataclass(p.annotation)
    }

    @wraps(command)
    def called(**values: Any) -> None:
        for name, group in groups.items():
            names = [field.name for field in fields(group)]
            values[name] = group(**{name: values.pop(name) for name in names})
        command(**values)

    spread: list[inspect.Parameter] = []
    for parameter in parameters:
        if parameter.name in groups:
            spread += [
                inspect.Parameter(
                    field.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=field.default,
                    annotation=field.type,
                )
                for field in fields(groups[parameter.name])
            ]
        else:
            spread.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
    vars(called)["__signature__"] = inspect.Signature(spread)
    called.__annotations__ = {p.name: p.annotation for p in spread}
    return called


def as_options(part: Setting | Command) -> str:
    """A setting or a command as it is typed, such as `--height 1000`."""
    if isinstance(part, Command):
        return " ".join([f"ditplan {part.name}", *map(as_options, part.settings)])
    option = RENAMED.get(part.name, part.name.replace("_", "-"))
    if isinstance(part.value, bool):
        return f"--{option}" if part.value else f"--no-{option}"
    return f"--{option}" if part.value is None else f"--{option} {part.value}"
