"""The command `export`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ditplan.command.options import Json
from ditplan.command.terminal import Terminal
from ditplan.exporting.export import FILES, LAUNCHERS, export
from ditplan.profiles.files import path_text
from ditplan.profiles.plan import ExecutionPlan


def export_command(
    plan: Annotated[Path, typer.Option(help="A plan written by `tune`.")],
    to: Annotated[
        str,
        typer.Option(
            help=f"Whose words to say it in: {', '.join((*LAUNCHERS, *FILES))}, or an "
            "engine's or backend's (`ditplan list backends`).",
        ),
    ],
    as_json: Json = False,
) -> None:
    """Print what another launcher or engine needs to do what a plan says, with the evidence."""
    terminal = Terminal(as_json)
    found = export(ExecutionPlan.load(plan), to, path_text(plan))
    for what in found.not_expressed:
        terminal.say(f"not expressed: {what}")
    terminal.show(found.text.rstrip("\n"))
    terminal.finish(asdict(found))
