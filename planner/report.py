"""Shows a ranking: a table for people and the JSON objects of the command line."""

import math
from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from ditplan.planner.objectives import Objective
from ditplan.planner.search.ranking import PricedCandidate, SearchResult
from ditplan.planner.search.workload_mix import Mixed
from ditplan.planner.space.enumerate import why_illegal
from ditplan.planner.task import Task
from ditplan.profiles.mesh import AXES
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import Prediction, Quality
from ditplan.profiles.splits import split_sizes
from ditplan.profiles.workload import Workload

RIGHT = ("#", "GPUs", "copies", "per s", "measured", "GB", "weight", "best s", "one mesh s")
"""Columns whose cells stand on the right."""


def ranking_table(ranking: SearchResult, rows: int = 12) -> Table:
    """The first candidates, and the rule of thumb wherever it stands: what they cost and need, and
    why they lost.

    Mode and measured seconds have a column only where there is something to tell. Only the last
    column wraps, so that the others can be read at 80 columns as well.
    """
    numbered = list(enumerate(ranking.ranked, start=1))
    shown = [(place, ranked) for place, ranked in numbered if place <= rows or ranked.is_baseline]
    headings = headings_of(ranking)
    title = f"{ranking.spec.name}: {ranking.workload}, on {ranking.cluster.name}"
    title += _wanted(ranking.objective)
    table = Table(title=escape(title), box=SIMPLE_HEAD, padding=0)
    for heading in headings:
        to_the_right = heading in RIGHT
        table.add_column(heading, no_wrap=True, justify="right" if to_the_right else "left")
    table.columns[-1].no_wrap = False
    table.columns[-1].overflow = "fold"
    for place, ranked in shown:
        cells = table_cells(place, ranked, ranking.workload.batch)
        table.add_row(*(escape(cells[heading]) for heading in headings))
    table.caption_justify = "left"
    hidden = len(numbered) - len(shown)
    said = [*caption_parts(shown, hidden, starred_text(ranking)), ranking.ended]
    if "copies" in headings:
        said.insert(1, "per s: what all copies make")
    table.caption = "; ".join(filter(None, said))
    return table


def headings_of(ranking: SearchResult) -> list[str]:
    """The columns that say something of this ranking."""
    with_mode = len({ranked.configuration.mode for ranked in ranking.ranked}) > 1
    with_measured = any(ranked.measurement for ranked in ranking.ranked)
    with_copies = ranking.objective.name == "throughput"
    return [
        *("#", "mesh", *(["mode"] if with_mode else []), "GPUs"),
        *(["copies", "per s"] if with_copies else []),
        "predicted s",
        *(["measured"] if with_measured else []),
        *("GB", "why not"),
    ]


def table_cells(place: int, ranked: PricedCandidate, batch: int = 1) -> dict[str, str]:
    """What `ranking_table` can say of a candidate, by heading; a call makes `batch` pictures."""
    candidate, prediction = ranked.configuration, ranked.prediction
    low_s, high_s = prediction.interval_s
    digits = digits_after_point(prediction.latency_s)
    interval = f"({low_s:.{digits}f}-{high_s:.{digits}f})"
    measured_s = ranked.measurement.latency_s if ranked.measurement else None
    seconds = f"{prediction.latency_s:.{digits}f} {interval}"
    if ranked.corrected_s is not None:
        seconds = f"{ranked.corrected_s:.{digits}f} (was {prediction.latency_s:.{digits}f})"
    words = [
        "best" if place == 1 else ranked.reason,
        approximation_text(ranked.quality),
        "it will swap" if ranked.warning else "",
    ]
    return {
        "#": str(place),
        "mesh": mesh_text(ranked),
        "mode": candidate.mode,
        "GPUs": str(candidate.mesh.size),
        "copies": str(ranked.replicas),
        "per s": f"{ranked.figures(batch).throughput_per_s:.3g}",
        "predicted s": seconds,
        "measured": f"{measured_s:.{digits_after_point(measured_s)}f}" if measured_s else "-",
        "GB": f"{prediction.memory_bytes / 1e9:.1f}",
        "why not": "; ".join(word for word in words if word),
    }


def mesh_text(ranked: PricedCandidate) -> str:
    """The mesh, a star at the rule of thumb, and below it the order of its axes where that isn't
    the usual one, PipeFusion's settings, and the least and the largest share of the tokens.
    """
    candidate = ranked.configuration
    lines = [f"{candidate.mesh}{' *' if ranked.is_baseline else ''}"]
    lines += [] if candidate.order == AXES else [f"({candidate.order_text})"]
    if part := candidate.pipefusion:
        fewest, most = min(part.blocks_per_stage), max(part.blocks_per_stage)
        blocks = f"{fewest}" if fewest == most else f"{fewest}-{most}"
        lines.append(f"{part.patches}p {part.warmup_steps}w {blocks}b")
    if shares := candidate.token_shares:
        lines.append(f"{min(shares)}:{max(shares)}t")
    if candidate.weights == "sharded":
        lines.append("weights in pieces")
    if candidate.step_cache:
        lines.append(f"{candidate.step_cache.name} {candidate.step_cache.interval}")
    return "\n".join(lines)


def digits_after_point(seconds: float) -> int:
    """How many digits show three that count of a number of seconds."""
    return max(0, 2 - math.floor(math.log10(seconds)))


def starred_text(ranking: SearchResult) -> str:
    """What the baseline is: the engine's own choice where it has one that can run."""
    own = [one for one in ranking.ranked if one.configuration.mesh == ranking.own_choice]
    return f"what {ranking.backend.name} takes by itself" if own else "rule of thumb"


def caption_parts(
    shown: list[tuple[int, PricedCandidate]], hidden: int, starred_is: str
) -> list[str]:
    """What is said below the table."""
    orders = any(ranked.configuration.order != AXES for _, ranked in shown)
    patched = any(ranked.configuration.pipefusion for _, ranked in shown)
    starred = any(ranked.is_baseline for _, ranked in shown)
    parts = ["seconds of denoising, predicted with their 90% interval"]
    corrected = any(ranked.corrected_s is not None for _, ranked in shown)
    parts += ["(was s): before it was corrected by what was measured"] if corrected else []
    parts += [f"* {starred_is}"] if starred else []
    parts += ["(a > b): ranks far apart along a, next to each other along b"] if orders else []
    words = "p, w, b: PipeFusion's patches, warm-up steps, blocks a stage; not exact"
    parts += [words] if patched else []
    cached = any(ranked.configuration.step_cache for _, ranked in shown)
    parts += (
        ["taylorseer n: every n-th step computes, as the plan says; not exact"] if cached else []
    )
    shared = any(ranked.configuration.token_shares for _, ranked in shown)
    parts += ["t: the least and the largest share of a sequence's tokens"] if shared else []
    return parts + ([f"{hidden} more not shown"] if hidden else [])


def tune_json(ranking: SearchResult) -> dict[str, object]:
    """What `tune --json` prints, without the path of the plan."""
    backend, batch = ranking.backend.name, ranking.workload.batch
    return {
        "model": ranking.spec.name,
        "cluster": ranking.cluster.name,
        "workload": ranking.workload.model_dump(),
        "backend": backend,
        "objective": ranking.objective.name,
        "max_latency_s": ranking.objective.max_latency_s,
        "best": candidate_json(ranking.best, backend, batch),
        "alternatives": [candidate_json(ranked, backend, batch) for ranked in ranking.alternatives],
        "pareto": [candidate_json(ranked, backend, batch) for ranked in ranking.pareto],
        "legal": ranking.legal,
        "pruned": ranking.pruned,
        "search_s": ranking.search_s,
        "ended": ranking.ended,
        "own_choice": str(ranking.own_choice) if ranking.own_choice else None,
        "notes": list(notes_on(ranking)),
    }


def candidate_json(ranked: PricedCandidate, backend: str, batch: int = 1) -> dict[str, object]:
    """A candidate that makes `batch` pictures a call, as `tune --json` shows it.

    `latency_s` is predicted, `measured_s` null unless it was run, `corrected_s` null unless others
    were; all are of one copy alone. `loaded_latency_s` is what a call takes while all `replicas`
    run, and `throughput_per_s` what these make together.
    """
    mesh, prediction, figures = ranked.configuration.mesh, ranked.prediction, ranked.figures(batch)
    return {
        "mesh": str(mesh),
        "gpus": mesh.size,
        **dict(zip(AXES, mesh.degrees, strict=True)),
        **shares_json(ranked),
        "mode": ranked.configuration.mode,
        "vae_parallel": ranked.configuration.vae_parallel,
        "backend": backend,
        "order": list(ranked.configuration.order),
        "placement": list(ranked.configuration.placement),
        "latency_s": prediction.latency_s,
        "interval_s": list(prediction.interval_s),
        "corrected_s": ranked.corrected_s,
        "measured_s": ranked.measurement.latency_s if ranked.measurement else None,
        "end_to_end_s": prediction.end_to_end_s,
        "setup_s": prediction.setup_s,
        "memory_bytes": prediction.memory_bytes,
        "fits": not (ranked.too_big or ranked.warning),
        "parts": prediction.parts,
        "link_bytes": prediction.link_bytes,
        "source": prediction.source,
        "replicas": ranked.replicas,
        "loaded_latency_s": figures.latency_s,
        "throughput_per_s": figures.throughput_per_s,
        "baseline": ranked.is_baseline,
        "reason": ranked.reason,
        "warning": ranked.too_big or ranked.warning,
    }


def approximation_text(quality: Quality) -> str:
    """What is known of how far a result is from one device's; nothing for an exact one."""
    if quality.exact:
        return ""
    return (
        "error not measured" if quality.relative_l2 is None else f"error {quality.relative_l2:.2g}"
    )


def parts_text(prediction: Prediction) -> str:
    """Where the time goes, in a line: the parts of the denoising loop, largest first."""
    parts = sorted(prediction.parts.items(), key=lambda part: -part[1])
    shares = ((name, round(100 * seconds / prediction.latency_s)) for name, seconds in parts)
    return ", ".join(f"{name} {share}%" for name, share in shares if share)


def notes_on(ranking: SearchResult) -> Iterator[str]:
    """What there is to know before the best plan is started."""
    first, hosts = 0, 0
    for host in ranking.cluster.hosts:
        ranks = range(first, first + len(host.devices))
        hosts += any(rank in ranks for rank in ranking.best.configuration.placement)
        first = ranks.stop
    if hosts > 1:
        yield (
            f"the plan spans {hosts} hosts: `ditplan run` needs a file of them, in order; a job "
            "of yours that torchrun starts on every host can run it, too (ditplan.parallelize)"
        )
    exact = [one for one in ranking.alternatives if one.quality.exact and not one.too_big]
    if ranking.best.must_lead and exact:
        nearest = min(exact, key=lambda one: one.weighed_s)
        yield (
            "how far its pictures are from one device's is not measured; the fastest exact plan, "
            f"{nearest.configuration}, takes {_seconds(nearest.latency_s)} s"
        )
    if other := ranking.better_order:
        yield (
            "slow devices are listed before fast ones, and plans use the first ranks: list fast "
            f"devices first, and {other.configuration.mesh} takes {_seconds(other.latency_s)} s"
        )
    own = ranking.own_choice
    if own and all(one.configuration.mesh != own for one in ranking.ranked):
        backend, spec = ranking.backend, ranking.spec
        why = why_illegal(own, spec, ranking.workload, None, backend, approximate=True)
        yield f"{backend.name} would take {own} by itself" + (f": {why}" if why else "")
    if ranking.backend.capabilities.runs != "in ranks":
        yield f"plans of backend {ranking.backend.name} are priced here and not run"


def best_text(ranking: SearchResult) -> str:
    """What is best, in a line: mesh, mode, PipeFusion's settings or a step cache, and where
    throughput is asked for what the copies make.
    """
    best = ranking.best
    part, cache = best.configuration.pipefusion, best.configuration.step_cache
    words = [
        str(best.configuration.mesh),
        best.configuration.mode,
        *(str(one) for one in (part, cache) if one),
    ]
    words += ["weights in pieces"] if best.configuration.weights == "sharded" else []
    words += [approximation] if (approximation := approximation_text(best.quality)) else []
    if ranking.objective.name == "throughput":
        figures = best.figures(ranking.workload.batch)
        copies = f"{best.replicas} cop{'y' if best.replicas == 1 else 'ies'}"
        words.append(
            f"{copies} at once make {figures.throughput_per_s:.3g} a second, each call in "
            f"{figures.latency_s:.3g} s"
        )
    return ", ".join(words)


def mix_table(mixed: Mixed) -> Table:
    """What each workload of a mix takes with its own plan, and with one mesh for all."""
    first = mixed.rankings[0]
    one_mesh = mixed.one_mesh
    costs = one_mesh.costs if one_mesh else (None,) * len(mixed.mix)
    table = Table(
        title=escape(f"{first.spec.name} on {first.cluster.name}"), box=SIMPLE_HEAD, padding=0
    )
    for heading in ("weight", "workload", "best plan", "GPUs", "best s", "one mesh s"):
        table.add_column(heading, justify="right" if heading in RIGHT else "left")
    for weighted, ranking, cost in zip(mixed.mix, mixed.rankings, costs, strict=True):
        best = ranking.best
        cells = (
            f"{weighted.weight:g}",
            str(weighted.workload),
            best_text(ranking),
            str(best.configuration.mesh.size),
            _seconds(best.prediction.latency_s),
            _seconds(cost.prediction.latency_s) if cost else "-",
        )
        table.add_row(*map(escape, cells))
    return table


def mix_text(mixed: Mixed) -> str:
    """What the book gains over one mesh for all, in a line."""
    book = f"weighted mean {_seconds(mixed.mean_s)} s with a plan for each workload"
    if mixed.one_mesh is None or mixed.gain is None:
        return f"{book}; no one mesh can serve all of them"
    first = mixed.one_mesh.costs[0].configuration
    part = f", {first.pipefusion}" if first.pipefusion else ""
    return (
        f"{book}, {_seconds(mixed.one_mesh.mean_s)} s with one mesh for all ({first.mesh}, "
        f"{first.mode}{part}): {100 * mixed.gain:.1f}% less"
    )


def mix_json(mixed: Mixed) -> dict[str, object]:
    """What `tune --workloads FILE --json` prints, without the path of the book."""
    one_mesh, backend = mixed.one_mesh, mixed.rankings[0].backend.name
    costs = one_mesh.costs if one_mesh else (None,) * len(mixed.mix)
    first = mixed.rankings[0]
    return {
        "model": first.spec.name,
        "cluster": first.cluster.name,
        "backend": backend,
        "workloads": [
            {
                "weight": weighted.weight,
                "workload": weighted.workload.model_dump(),
                "best": candidate_json(ranking.best, backend, weighted.workload.batch),
                "one_mesh": candidate_json(cost, backend, weighted.workload.batch)
                if cost
                else None,
                "legal": ranking.legal,
                "pruned": ranking.pruned,
            }
            for weighted, ranking, cost in zip(mixed.mix, mixed.rankings, costs, strict=True)
        ],
        "mean_s": mixed.mean_s,
        "one_mesh_mean_s": one_mesh.mean_s if one_mesh else None,
        "gain": mixed.gain,
        "search_s": sum(ranking.search_s for ranking in mixed.rankings),
    }


def _wanted(objective: Objective) -> str:
    """The objective as a table's title says it."""
    within = f" within {objective.max_latency_s:g} s" if objective.max_latency_s else ""
    names = {"latency": "", "throughput": ", by throughput", "gpus": ", by GPUs needed"}
    return names[objective.name] + within


def _seconds(seconds: float) -> str:
    return f"{seconds:.{digits_after_point(seconds)}f}"


def shares_text(ranked: PricedCandidate, spec: ModelSpec, workload: Workload) -> str:
    """How unlike ranks share the image's tokens, in a line; empty where they have equal parts."""
    shares = ranked.configuration.token_shares
    if shares is None:
        return ""
    tokens = split_sizes(spec.image_tokens(workload), len(shares), shares)
    return f"image tokens by rank of a sequence: {' + '.join(map(str, tokens))}"


def shares_json(ranked: PricedCandidate) -> dict[str, object]:
    """PipeFusion's settings, the shares of the tokens (null for equal ones), and what the result
    is: `quality` is the relative L2 distance of the final latents from one device's, null where it
    isn't known.
    """
    part, shares = ranked.configuration.pipefusion, ranked.configuration.token_shares
    cache = ranked.configuration.step_cache
    return {
        "patches": part.patches if part else 1,
        "warmup": part.warmup_steps if part else 0,
        "blocks_per_stage": list(part.blocks_per_stage) if part else None,
        "token_shares": list(shares) if shares else None,
        "weights": ranked.configuration.weights,
        "step_cache": cache.model_dump() if cache else None,
        "exact": ranked.quality.exact,
        "quality": ranked.quality.relative_l2,
        "approximation": approximation_text(ranked.quality) or None,
    }


def simulate_json(task: Task, priced: PricedCandidate) -> dict[str, object]:
    """What `simulate --json` prints: a candidate as `tune` has it, and for what."""
    found = candidate_json(priced, task.backend.name, task.workload.batch)
    of_a_ranking = {"baseline", "reason", "replicas", "corrected_s", "measured_s"}
    of_a_ranking |= {"loaded_latency_s", "throughput_per_s"}
    return {
        "model": task.spec.name,
        "cluster": task.cluster.name,
        "workload": task.workload.model_dump(),
        **{name: value for name, value in found.items() if name not in of_a_ranking},
        "breakdown": priced.prediction.parts,
    }
