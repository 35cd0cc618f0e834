"""A report of a plan: what `tune --report` and `explain --report` write."""

from pathlib import Path

from ditplan.explaining.explanation import Explanation
from ditplan.outputs import require_folder
from ditplan.profiles.errors import InputError
from ditplan.profiles.record import write_atomically
from ditplan.reporting.cluster_figures import cluster_graph, heat_map
from ditplan.reporting.crossover_figures import crossovers
from ditplan.reporting.evidence_figures import predicted_against_measured, quality
from ditplan.reporting.figure import Figure, LeftOut
from ditplan.reporting.page import page
from ditplan.reporting.plotting import require_plotly
from ditplan.reporting.ranking_figures import pareto, parts, ranking
from ditplan.reporting.study_figures import history
from ditplan.reporting.timeline_figures import (
    TraceRows,
    predicted_timeline,
    recorded_timeline,
)


def require_report(out: Path) -> None:
    """Refuses a report that can't be written, before anything takes long.

    Raises:
        InputError: its folder, its name, or plotly is missing.
    """
    require_folder(out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{out}: a report is a page for a browser; name a .html")
    require_plotly()


def save_report(found: Explanation, out: Path, recorded: TraceRows | None = None) -> Path:
    """Writes the report; `recorded` is what `run --trace` recorded of the plan.

    Raises:
        InputError: it can't be written.
    """
    return write_atomically(out, page(found, figures_of(found, recorded)))


def figures_of(found: Explanation, recorded: TraceRows | None = None) -> list[Figure | LeftOut]:
    """All that a report shows, in order, and what it leaves out."""
    subject = found.subject
    return [
        ranking(found),
        pareto(found),
        parts(found),
        crossovers(found),
        predicted_timeline(found),
        recorded_timeline(recorded),
        cluster_graph(subject),
        heat_map(subject),
        predicted_against_measured(found),
        history(found),
        quality(found),
    ]
