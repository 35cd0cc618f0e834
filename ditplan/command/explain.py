"""The command `explain`."""

from pathlib import Path
from typing import Annotated

import typer

from ditplan.command.options import Cluster, Gpus, Json, Report, Weights
from ditplan.command.terminal import Terminal
from ditplan.profiles.errors import InputError, Setting
from ditplan.profiles.plan import ExecutionPlan


def explain_command(
    plan: Annotated[Path, typer.Option(help="A plan written by `tune`.")],
    cluster: Cluster = None,
    gpus: Gpus = None,
    weights: Weights = None,
    report: Report = None,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What `run --trace` recorded: the report shows it, too."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say why a plan was chosen: its worth, its parts, what lost where, what would change it.

    The cluster is the one that the plan names: shipped, or NAME.json or the study beside the plan.
    """
    from ditplan.explaining.explanation import explain
    from ditplan.reporting.report import require_report, save_report
    from ditplan.reporting.timeline_figures import recorded_rows

    terminal = Terminal(as_json)
    recorded = None
    if report is not None:
        require_report(report)
        if trace is not None:
            recorded = recorded_rows(trace, ExecutionPlan.load(plan))
    elif trace is not None:
        raise InputError(Setting("trace", trace), " is for a report: give ", Setting("report"))
    found = explain(plan, cluster=cluster, gpus=gpus, weights=weights, say=terminal.say)
    terminal.show(str(found))
    written: dict[str, str] = {}
    if report is not None:
        written["report"] = str(save_report(found, report, recorded))
        terminal.show(f"{report}: open it in a browser")
    terminal.finish(found.to_json() | written)
