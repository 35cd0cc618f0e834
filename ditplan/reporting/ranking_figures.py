"""The ranking in a report: intervals, parts, and the Pareto front."""

from collections.abc import Iterator
from typing import Any

from ditplan.explaining.explanation import Explanation
from ditplan.explaining.rivals import words_for
from ditplan.explaining.subject import Subject
from ditplan.planner.search.ranking import PricedCandidate
from ditplan.reporting.figure import (
    BLUE,
    COLOUR_OF_PART,
    GREY,
    ORANGE,
    RED,
    Figure,
    LeftOut,
    Table,
    seconds_text,
)

RANKING, PARTS, PARETO = "ranking", "parts", "pareto"
FAR_TIMES = 2.5
"""One GPU that takes so many times as long is said in words."""

OTHER_SHARE = 0.005
"""Parts that are less than this of every plan are one."""


def compared(found: Explanation) -> list[PricedCandidate]:
    """The plan, what lost against it, the rule of thumb, and one GPU where it isn't so slow that
    the others would all look alike; fastest first.
    """
    subject, one_gpu = found.subject, found.subject.one_gpu
    others = [rival.ranked for rival in found.rivals]
    others += [] if subject.baseline is None else [subject.baseline]
    least_s = subject.own.prediction.latency_s
    if one_gpu is not None and one_gpu.prediction.latency_s < FAR_TIMES * least_s:
        others.append(one_gpu)
    own = subject.own.configuration
    distinct = {one.configuration: one for one in others if one.configuration != own}
    return sorted([subject.own, *distinct.values()], key=lambda one: one.prediction.latency_s)


def names_of(found: Explanation, ranked: list[PricedCandidate]) -> list[str]:
    """A short name for each, unlike those of the others."""
    names = []
    for one in ranked:
        name = str(one.configuration.mesh)
        if one.configuration == found.subject.plan.configuration:
            name = f"<b>{name}</b>"
        if one.is_baseline:
            name += " *"
        while name in names:
            name += f" ({one.configuration.mode})"
        names.append(name)
    return names


def ranking(found: Explanation) -> Figure:
    """Predicted seconds with their intervals, and measured ones where there are any."""
    ranked = compared(found)
    names = names_of(found, ranked)
    own = found.subject.plan.configuration
    predicted = [one.prediction for one in ranked]
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": "predicted, 90% interval",
            "x": [one.latency_s for one in predicted],
            "y": names,
            "error_x": {
                "type": "data",
                "symmetric": False,
                "array": [one.interval_s[1] - one.latency_s for one in predicted],
                "arrayminus": [one.latency_s - one.interval_s[0] for one in predicted],
                "thickness": 1.5,
                "color": GREY,
            },
            "marker": {
                "size": 10,
                "color": [BLUE if one.configuration == own else GREY for one in ranked],
            },
            "hovertemplate": "%{y}: %{x:.4g} s<extra>predicted</extra>",
        }
    ]
    runs = [found.subject.measured_s(one.configuration) for one in ranked]
    known = [(run, name) for run, name in zip(runs, names, strict=True) if run is not None]
    if known:
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "measured",
                "x": [run for run, _ in known],
                "y": [name for _, name in known],
                "marker": {"size": 11, "symbol": "diamond", "color": ORANGE},
                "hovertemplate": "%{y}: %{x:.4g} s<extra>measured</extra>",
            }
        )
    why = {rival.ranked.configuration: rival.why for rival in found.rivals}
    rows = [
        (
            str(one.configuration),
            str(one.configuration.mesh.size),
            seconds_text(one.prediction.latency_s),
            f"{one.prediction.interval_s[0]:.4g} to {one.prediction.interval_s[1]:.4g}",
            seconds_text(run),
            f"{one.prediction.memory_bytes / 1e9:.1f}",
            "the plan" if one.configuration == own else why.get(one.configuration, one.reason),
        )
        for one, run in zip(ranked, runs, strict=True)
    ]
    near = [str(r.ranked.configuration.mesh) for r in found.rivals if r.is_within_error]
    doubt = (
        f"Within the error of the plan: {', '.join(near)}."
        if near
        else ("No other is within the error.")
    )
    headings = ("plan", "GPUs", "predicted s", "90% interval", "measured s", "GB", "why not")
    return Figure(
        RANKING,
        "The ranking",
        f"Latency of {len(ranked)} plans with intervals; the plan takes "
        f"{found.subject.own.prediction.latency_s:.4g} s",
        f"The best of each mesh; the plan is bold and blue, * is the rule of thumb. {doubt}"
        f"{_far_text(found)}",
        data,
        {
            "xaxis": {"title": {"text": "seconds of denoising"}, "rangemode": "tozero"},
            "yaxis": {"autorange": "reversed", "automargin": True},
        },
        Table(headings, rows),
        height=120 + 32 * len(ranked),
    )


def _far_text(found: Explanation) -> str:
    one, own_s = found.subject.one_gpu, found.subject.own.prediction.latency_s
    if one is None or one.prediction.latency_s < FAR_TIMES * own_s:
        return ""
    return f" One GPU takes {one.prediction.latency_s:.4g} s."


def parts(found: Explanation) -> Figure:
    """Where the time of the plan and of those that lost goes."""
    ranked = compared(found)
    names = names_of(found, ranked)
    every = [part.part for part in found.parts]
    every += sorted({name for one in ranked for name in one.prediction.parts} - {*every})
    large = [
        name
        for name in every
        if any(
            one.prediction.parts.get(name, 0.0) > OTHER_SHARE * one.prediction.latency_s
            for one in ranked
        )
    ]
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": words_for(name),
            "x": [one.prediction.parts.get(name, 0.0) for one in ranked],
            "y": names,
            "marker": {"color": COLOUR_OF_PART.get(name, RED)},
            "hovertemplate": "%{y}: %{x:.4g} s<extra>" + words_for(name) + "</extra>",
        }
        for name in large
    ]
    rows = [
        (
            str(one.configuration.mesh),
            *(seconds_text(one.prediction.parts.get(name, 0.0)) for name in large),
        )
        for one in ranked
    ]
    lost = [
        f"{rival.ranked.configuration.mesh} loses {rival.lost_s:.3g} s in "
        f"{words_for(rival.lost_in)}"
        for rival in found.rivals[:3]
    ]
    return Figure(
        PARTS,
        "Where the time goes",
        f"Stacked bars of {len(ranked)} plans by part",
        f"The busiest rank's time. The plan is {found.binding}. {'; '.join(lost)}.",
        data,
        {
            "barmode": "stack",
            "legend": {"traceorder": "normal"},
            "xaxis": {"title": {"text": "seconds of denoising"}},
            "yaxis": {"autorange": "reversed", "automargin": True},
        },
        Table(("plan", *(words_for(name) for name in large)), rows),
        height=170 + 30 * len(ranked),
    )


def pareto(found: Explanation) -> Figure | LeftOut:
    """Latency against GPUs and memory, and what no other plan beats in both."""
    title = "Latency against GPUs and memory"
    best = _best_of_each_size(found.subject)
    if len(best) < 2:
        return LeftOut(PARETO, title, "All plans that fit use the same number of GPUs.")
    points = _shown_points(found.subject)
    front = list(_front(best))
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": "best of a mesh",
            "x": [one.configuration.mesh.size for one in points],
            "y": [one.prediction.latency_s for one in points],
            "text": [str(one.configuration) for one in points],
            "hovertemplate": "%{text}: %{y:.4g} s on %{x} GPUs<extra></extra>",
            "marker": {
                "size": 9,
                "opacity": 0.85,
                "color": [one.prediction.memory_bytes / 1e9 for one in points],
                "colorscale": "Viridis",
                "showscale": True,
                "colorbar": {"title": {"text": "GB a GPU"}, "thickness": 12},
            },
        },
        {
            "type": "scatter",
            "mode": "lines",
            "name": "none is faster on as few",
            "x": [one.configuration.mesh.size for one in front],
            "y": [one.prediction.latency_s for one in front],
            "line": {"color": BLUE, "width": 2},
            "hoverinfo": "skip",
        },
    ]
    rows = [
        (
            str(one.configuration.mesh.size),
            str(one.configuration),
            seconds_text(one.prediction.latency_s),
            f"{one.prediction.memory_bytes / 1e9:.1f}",
            f"{one.prediction.latency_s * one.configuration.mesh.size:.4g}",
        )
        for one in front
    ]
    return Figure(
        PARETO,
        title,
        f"Latency of {len(points)} plans against their number of GPUs; {len(front)} on the front",
        "The line joins the fastest plans that no plan of fewer GPUs equals. The colour is memory.",
        data,
        {
            "xaxis": {
                "title": {"text": "GPUs"},
                "dtick": 1 if _most(points) <= 16 else 4,
            },
            "yaxis": {"title": {"text": "seconds of denoising"}, "type": "log"},
        },
        Table(("GPUs", "plan", "predicted s", "GB a GPU", "GPU seconds"), rows),
        height=380,
    )


def _most(points: list[PricedCandidate]) -> int:
    return max(one.configuration.mesh.size for one in points)


def _shown_points(subject: Subject) -> list[PricedCandidate]:
    best: dict[tuple[int, ...], PricedCandidate] = {}
    for one in subject.fitting:
        best.setdefault(one.configuration.mesh.degrees, one)
    return list(best.values())


def _best_of_each_size(subject: Subject) -> list[PricedCandidate]:
    """The fastest of each number of GPUs, few first."""
    best: dict[int, PricedCandidate] = {}
    for one in subject.fitting:
        best.setdefault(one.configuration.mesh.size, one)
    return [best[size] for size in sorted(best)]


def _front(best: list[PricedCandidate]) -> Iterator[PricedCandidate]:
    least_s = float("inf")
    for one in best:
        if one.prediction.latency_s < least_s:
            least_s = one.prediction.latency_s
            yield one
