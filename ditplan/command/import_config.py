"""The command `import-config`."""

import re
from typing import Annotated, Literal

import typer

from ditplan.command.hosts import asked_hosts
from ditplan.command.options import (
    Cluster,
    Gpus,
    HostOptions,
    Json,
    OptionalModel,
    WorkloadOptions,
    as_options,
    given,
    with_options,
)
from ditplan.command.terminal import Terminal
from ditplan.profiles.catalog import find_cluster
from ditplan.profiles.cluster import ClusterProfile
from ditplan.profiles.errors import InputError, Setting

Engine = Literal["xdit", "diffusers", "sglang", "vllm-omni", "cache-dit"]


@with_options
def import_config_command(
    config: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG",
            help="A file (YAML, JSON, a shell or Python script) or a command line in quotes.",
        ),
    ],
    engine: Annotated[Engine, typer.Option("--from", help="Whose configuration it is.")],
    workload: WorkloadOptions,
    hosts: HostOptions,
    cluster: Cluster = None,
    model: OptionalModel = None,
    gpus: Gpus = None,
    fail_if_slower: Annotated[
        str | None,
        typer.Option(
            metavar="P%", help="Exit with 1 if it takes more than this longer than the best: 10%."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Price what somebody runs now by its flags or file, against the best for as many GPUs."""
    from ditplan.importing.comparison import import_config

    terminal = Terminal(as_json)
    most = None if fail_if_slower is None else _share(fail_if_slower)
    chosen = asked_hosts(hosts, terminal.say, is_on_paper=cluster is not None)
    if cluster is None and hosts.hosts is None:
        raise InputError(
            "on which GPUs? Give ", Setting("cluster", "NAME"), " or ", Setting("hosts", "FILE")
        )

    def measured() -> ClusterProfile:
        from ditplan.measuring import measured_cluster

        return measured_cluster(chosen, gpus, terminal.say)

    place = Setting("hosts", hosts.hosts) if cluster is None else Setting("cluster", cluster)
    found = import_config(
        config,
        engine,
        measured if cluster is None else lambda: find_cluster(cluster),
        model,
        gpus,
        given(workload),
        place,
    )
    for note in found.notes:
        terminal.say(f"note: {note}")
    terminal.show(found.verdict.worded(as_options))
    terminal.finish(found.to_json() | {"command": found.command.worded(as_options)})
    if most is not None and found.slower > most:
        terminal.say(f"slower by {found.slower:.0%}, more than {fail_if_slower}")
        raise typer.Exit(1)


def _share(text: str) -> float:
    """A percentage as a share of 1.

    Raises:
        InputError: it is none.
    """
    if not re.fullmatch(r"\d{1,4}(\.\d{1,3})?%", text, re.ASCII):
        raise InputError(Setting("fail_if_slower", text), ": must be a percentage, such as 10%")
    return float(text[:-1]) / 100
