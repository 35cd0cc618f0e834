"""The command `table`."""

from pathlib import Path
from typing import Annotated

import typer

from ditplan.command.options import Cluster, Json
from ditplan.command.terminal import Terminal
from ditplan.profiles.book import PlanBook


def table_command(
    book: Annotated[Path, typer.Option(help="A book written by `tune --workloads`.")],
    cluster: Cluster = None,
    as_json: Json = False,
) -> None:
    """Say what calls by a book's plans take, for routers: N steps take fixed_s + N x step_s."""
    from ditplan.cost_table import cost_table, shown_table, table_json

    terminal = Terminal(as_json)
    rows = cost_table(PlanBook.load(book), cluster)
    terminal.show(shown_table(book, rows))
    terminal.finish(table_json(rows))
