"""`--report` of `tune`: the plan that was found, explained on a page for a browser."""

import os
from pathlib import Path
from typing import Any

from ditplan.command.terminal import Terminal
from ditplan.profiles.errors import InputError, Setting


def prepare_report(report: Path | None, workloads: Path | None) -> None:
    """Refuses a report that can't be written, before anything is measured.

    Raises:
        InputError: no page for a browser, no folder, no plotly, or a book in place of a plan.
    """
    if report is None:
        return
    if workloads is not None:
        raise InputError(
            Setting("report", report), " is of one plan; leave it out, or ", Setting("workloads")
        )
    from ditplan.reporting.report import require_report

    require_report(report)


def report_on(
    report: Path | None, out: Path, cluster: str | None, model: str, terminal: Terminal
) -> dict[str, Any]:
    """Writes the report of the plan in `out`, if one was asked for; gives what JSON says of it."""
    if report is None:
        return {}
    from ditplan.explaining.explanation import explain
    from ditplan.reporting.report import save_report

    weights = Path(model) if os.path.isdir(model) else None
    found = explain(out, cluster=cluster, weights=weights, say=terminal.say)
    terminal.show(found.verdict)
    terminal.show(f"{save_report(found, report)}: open it in a browser")
    return {"report": str(report)}
