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
        Path | None,
        typer.Option(metavar="DIR", help="Folder of recorded cases, a JSON file a cluster."),
    ] = None,
    plans: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of saved plans and books.")
    ] = None,
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
    """Plan recorded cases again, and price saved plans: fail where a plan was lost or got worse."""
    from ditplan.checking.check import check
    from ditplan.checking.comparing import Bounds
    from ditplan.checking.reports import junit as junit_text

    terminal = Terminal(as_json)
    if junit is not None:
        require_folder(junit)
    result = check(baseline, plans, Bounds(percent, seconds), update=update, say=terminal.say)
    if junit is not None:
        write_atomically(junit, junit_text(result))
    terminal.show(str(result))
    terminal.finish(result.to_json())
    recorded = update and all(not one.name.startswith("plans: ") for one in result.failed)
    if result.failed and not recorded:
        raise typer.Exit(1)
