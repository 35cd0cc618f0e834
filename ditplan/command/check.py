"""The command `check`."""

from pathlib import Path
from typing import Annotated

import typer

from ditplan.command.options import Json
from ditplan.command.terminal import Terminal
from ditplan.outputs import require_folder
from ditplan.profiles.record import write_atomically


def check_command(
    baseline: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of recorded cases, a JSON file a cluster.")
    ],
    update: Annotated[
        bool,
        typer.Option("--update", help="Record today's answers, and say in CHANGES.md what moved."),
    ] = False,
    percent: Annotated[
        float, typer.Option(min=0, help="A choice may cost so many percent more, or")
    ] = 2.0,
    seconds: Annotated[
        float, typer.Option(min=0, help="so many seconds more: both must be exceeded to fail.")
    ] = 0.005,
    junit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the result as JUnit's XML, too.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Plan recorded cases again: fail where a plan was lost or got worse, say what moved."""
    from ditplan.checking.check import check
    from ditplan.checking.comparing import Bounds
    from ditplan.checking.reports import junit as junit_text

    terminal = Terminal(as_json)
    if junit is not None:
        require_folder(junit)
    result = check(baseline, Bounds(percent, seconds), update=update, say=terminal.say)
    if junit is not None:
        write_atomically(junit, junit_text(result))
    terminal.show(str(result))
    terminal.finish(result.to_json())
    if result.failed and not update:
        raise typer.Exit(1)
