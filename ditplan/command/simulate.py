"""The command `simulate`."""

from pathlib import Path
from typing import Annotated

import typer

from ditplan.command.options import (
    BackendName,
    ExactCluster,
    Gpus,
    Json,
    MeshOptions,
    Model,
    WorkloadOptions,
    given,
    with_options,
)
from ditplan.command.terminal import Terminal
from ditplan.outputs import require_folder
from ditplan.settings import SimulateSettings, checked


@with_options
def simulate_command(
    cluster: ExactCluster,
    model: Model,
    workload: WorkloadOptions,
    mesh: MeshOptions,
    gpus: Gpus = None,
    backend: BackendName = "native",
    trace: Annotated[
        Path | None,
        typer.Option(help="Write when each rank and link does what, for ui.perfetto.dev."),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(
            help="The model's measured blocks: a file of `profile --model`, or a study's."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Price exactly one configuration."""
    from ditplan.planning import simulate

    terminal = Terminal(as_json)
    if trace is not None:
        require_folder(trace)
    asked = {"gpus": gpus, "backend": backend, **given(workload), **given(mesh)}
    found = simulate(model, cluster, profile=profile, **checked(SimulateSettings, asked))
    terminal.show(str(found))
    result = found.to_json()
    if trace is not None:
        found.save_trace(trace)
        shown = f"steps 1 to {found.timeline.shown_steps} of {found.timeline.steps}"
        terminal.show(f"{trace}: {shown}; open it in https://ui.perfetto.dev")
        result["trace"] = str(trace)
    terminal.finish(result)
