"""The command `explain`."""

from pathlib import Path
from typing import Annotated

import typer

from ditplan.command.options import Cluster, Gpus, Json, Weights
from ditplan.command.terminal import Terminal


def explain_command(
    plan: Annotated[Path, typer.Option(help="A plan written by `tune`.")],
    cluster: Cluster = None,
    gpus: Gpus = None,
    weights: Weights = None,
    as_json: Json = False,
) -> None:
    """Say why a plan was chosen: its worth, its parts, what lost where, what would change it.

    The cluster is the one that the plan names: shipped, or NAME.json or the study beside the plan.
    """
    from ditplan.explaining.explanation import explain

    terminal = Terminal(as_json)
    found = explain(plan, cluster=cluster, gpus=gpus, weights=weights, say=terminal.say)
    terminal.show(str(found))
    terminal.finish(found.to_json())
