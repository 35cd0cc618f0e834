"""Shows a ranking: a table for people and the JSON objects of the command line."""

from rich.table import Table

from ditplan.planner.ranking import Ranked, Ranking
from ditplan.profiles.mesh import AXES
from ditplan.profiles.plan import Prediction


def ranking_table(ranking: Ranking, rows: int = 12) -> Table:
    """The first candidates: degrees, mode, GPUs, predicted with interval, measured, memory, why
    they lost.
    """
    table = Table(title=f"{ranking.spec.name}: {ranking.workload}, on {ranking.cluster.name}")
    for heading in ("", "mesh", "order", "mode"):
        table.add_column(heading)
    for heading in ("GPUs", "predicted s", "90% interval", "measured s", "memory GB"):
        table.add_column(heading, justify="right")
    table.add_column("why not", overflow="fold")
    for place, ranked in enumerate(ranking.ranked[:rows], start=1):
        table.add_row(*table_row(place, ranked))
    hidden = len(ranking.ranked) - rows
    if hidden > 0:
        table.caption = f"and {hidden} more"
    return table


def table_row(place: int, ranked: Ranked) -> list[str]:
    """The cells of a candidate in `ranking_table`."""
    candidate, prediction = ranked.candidate, ranked.prediction
    low_s, high_s = prediction.interval_s
    measured = f"{ranked.measurement.latency_s:.4g}" if ranked.measurement else "-"
    why = "best" if place == 1 else ranked.reason
    return [
        str(place),
        str(candidate.mesh) + (" (rule of thumb)" if ranked.control else ""),
        candidate.order_text or "-",
        candidate.mode,
        str(candidate.mesh.size),
        f"{prediction.latency_s:.4g}",
        f"{low_s:.3g} to {high_s:.3g}",
        measured,
        f"{prediction.memory_bytes / 1e9:.1f}",
        why,
    ]


def tune_json(ranking: Ranking) -> dict[str, object]:
    """What `tune --json` prints, without the path of the plan."""
    backend = ranking.backend.name
    return {
        "best": candidate_json(ranking.best, backend),
        "alternatives": [candidate_json(ranked, backend) for ranked in ranking.alternatives],
        "legal": ranking.legal,
        "pruned": ranking.pruned,
        "search_s": ranking.search_s,
    }


def candidate_json(ranked: Ranked, backend: str) -> dict[str, object]:
    """A candidate as `tune --json` shows it.

    `latency_s` is predicted, `measured_s` null unless it was run.
    """
    mesh, prediction = ranked.candidate.mesh, ranked.prediction
    return {
        "gpus": mesh.size,
        **dict(zip(AXES, mesh.degrees, strict=True)),
        "patches": mesh.pipefusion,
        "warmup": 1 if mesh.pipefusion > 1 else 0,
        "mode": ranked.candidate.mode,
        "backend": backend,
        "placement": list(ranked.candidate.placement),
        "latency_s": prediction.latency_s,
        "interval_s": list(prediction.interval_s),
        "measured_s": ranked.measurement.latency_s if ranked.measurement else None,
        "end_to_end_s": prediction.end_to_end_s,
        "setup_s": prediction.setup_s,
        "memory_bytes": prediction.memory_bytes,
        "exact": True,
        "quality": None,
        "control": ranked.control,
        "reason": ranked.reason,
    }


def simulate_json(prediction: Prediction) -> dict[str, object]:
    """What `simulate --json` prints."""
    return {
        "latency_s": prediction.latency_s,
        "interval_s": list(prediction.interval_s),
        "end_to_end_s": prediction.end_to_end_s,
        "setup_s": prediction.setup_s,
        "memory_bytes": prediction.memory_bytes,
        "breakdown": prediction.parts,
        "link_bytes": prediction.link_bytes,
        "source": prediction.source,
    }
