"""The command `compare`."""

from pathlib import Path
from typing import Annotated

import typer

from ditplan.command.options import Json
from ditplan.command.terminal import Terminal


def compare_command(
    a: Annotated[Path, typer.Argument(help="A plan, a cluster, a record, or a study's folder.")],
    b: Annotated[Path, typer.Argument(help="Another one of its kind.")],
    as_json: Json = False,
) -> None:
    """Compare two plans, clusters, studies or records, part by part, and say what may be noise."""
    from ditplan.explaining.contrast import contrast

    terminal = Terminal(as_json)
    found = contrast(a, b)
    terminal.show(str(found))
    terminal.finish(found.to_json())
