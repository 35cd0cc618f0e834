"""Shows a ranking: a table for people and the JSON objects of the command line."""

import math

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from ditplan.planner.ranking import Ranked, Ranking
from ditplan.profiles.mesh import AXES
from ditplan.profiles.plan import Prediction


def ranking_table(ranking: Ranking, rows: int = 12) -> Table:
    """The first candidates, and the rule of thumb wherever it stands: what they cost and need, and
    why they lost.

    Mode and measured seconds have a column only where there is something to tell. Only the last
    column wraps, so that the others can be read at 80 columns as well.
    """
    numbered = list(enumerate(ranking.ranked, start=1))
    shown = [(place, ranked) for place, ranked in numbered if place <= rows or ranked.control]
    headings = headings_of(ranking)
    title = f"{ranking.spec.name}: {ranking.workload}, on {ranking.cluster.name}"
    table = Table(title=escape(title), box=SIMPLE_HEAD, padding=0)
    for heading in headings:
        to_the_right = heading in ("#", "GPUs", "measured", "GB")
        table.add_column(heading, no_wrap=True, justify="right" if to_the_right else "left")
    table.columns[-1].no_wrap = False
    table.columns[-1].overflow = "fold"
    for place, ranked in shown:
        cells = table_cells(place, ranked)
        table.add_row(*(escape(cells[heading]) for heading in headings))
    table.caption_justify = "left"
    said = [*caption_parts(shown, hidden=len(numbered) - len(shown)), ranking.ended]
    table.caption = "; ".join(filter(None, said))
    return table


def headings_of(ranking: Ranking) -> list[str]:
    """The columns that say something of this ranking."""
    with_mode = len({ranked.candidate.mode for ranked in ranking.ranked}) > 1
    with_measured = any(ranked.measurement for ranked in ranking.ranked)
    return [
        *("#", "mesh", *(["mode"] if with_mode else []), "GPUs", "predicted s"),
        *(["measured"] if with_measured else []),
        *("GB", "why not"),
    ]


def table_cells(place: int, ranked: Ranked) -> dict[str, str]:
    """What `ranking_table` can say of a candidate, by heading."""
    candidate, prediction = ranked.candidate, ranked.prediction
    low_s, high_s = prediction.interval_s
    digits = digits_after_point(prediction.latency_s)
    interval = f"({low_s:.{digits}f}-{high_s:.{digits}f})"
    measured_s = ranked.measurement.latency_s if ranked.measurement else None
    words = ["best" if place == 1 else ranked.reason, "it will swap" if ranked.warning else ""]
    return {
        "#": str(place),
        "mesh": mesh_text(ranked),
        "mode": candidate.mode,
        "GPUs": str(candidate.mesh.size),
        "predicted s": f"{prediction.latency_s:.{digits}f} {interval}",
        "measured": f"{measured_s:.{digits_after_point(measured_s)}f}" if measured_s else "-",
        "GB": f"{prediction.memory_bytes / 1e9:.1f}",
        "why not": "; ".join(word for word in words if word),
    }


def mesh_text(ranked: Ranked) -> str:
    """The mesh, a star at the rule of thumb, and below it the order of its axes where that isn't
    the usual one, and PipeFusion's settings.
    """
    candidate = ranked.candidate
    lines = [f"{candidate.mesh}{' *' if ranked.control else ''}"]
    lines += [] if candidate.order == AXES else [f"({candidate.order_text})"]
    if part := candidate.pipefusion:
        fewest, most = min(part.blocks_per_stage), max(part.blocks_per_stage)
        blocks = f"{fewest}" if fewest == most else f"{fewest}-{most}"
        lines.append(f"{part.patches}p {part.warmup_steps}w {blocks}b")
    return "\n".join(lines)


def digits_after_point(seconds: float) -> int:
    """How many digits show three that count of a number of seconds."""
    return max(0, 2 - math.floor(math.log10(seconds)))


def caption_parts(shown: list[tuple[int, Ranked]], hidden: int) -> list[str]:
    """What is said below the table."""
    orders = any(ranked.candidate.order != AXES for _, ranked in shown)
    patched = any(ranked.candidate.pipefusion for _, ranked in shown)
    starred = any(ranked.control for _, ranked in shown)
    parts = ["seconds of denoising, predicted with their 90% interval"]
    parts += ["* rule of thumb"] if starred else []
    parts += ["(a > b): ranks far apart along a, next to each other along b"] if orders else []
    words = "p, w, b: PipeFusion's patches, warm-up steps, blocks a stage; not exact"
    parts += [words] if patched else []
    return parts + ([f"{hidden} more not shown"] if hidden else [])


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
        **patching_json(ranked),
        "mode": ranked.candidate.mode,
        "backend": backend,
        "placement": list(ranked.candidate.placement),
        "latency_s": prediction.latency_s,
        "interval_s": list(prediction.interval_s),
        "measured_s": ranked.measurement.latency_s if ranked.measurement else None,
        "end_to_end_s": prediction.end_to_end_s,
        "setup_s": prediction.setup_s,
        "memory_bytes": prediction.memory_bytes,
        "control": ranked.control,
        "reason": ranked.reason,
        "warning": ranked.warning,
    }


def patching_json(ranked: Ranked) -> dict[str, object]:
    """PipeFusion's settings and what they do to the result: `quality` is the relative L2 distance
    of the final latents from one device's, null where it isn't known.
    """
    part = ranked.candidate.pipefusion
    return {
        "patches": part.patches if part else 1,
        "warmup": part.warmup_steps if part else 0,
        "blocks_per_stage": list(part.blocks_per_stage) if part else None,
        "exact": ranked.quality.exact,
        "quality": ranked.quality.relative_l2,
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
