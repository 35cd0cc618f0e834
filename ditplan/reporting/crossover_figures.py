"""What would change the choice, in a report: the best rival against the plan, along each axis."""

from typing import Any

from ditplan.explaining.crossovers import Compared, Curve
from ditplan.explaining.explanation import Explanation
from ditplan.reporting.figure import COLOURS, GREY, RED, Figure, LeftOut, Table

CROSSOVERS = "crossovers"
LEAST, MOST = 0.85, 1.5
"""Ratios beyond these are drawn at the edge."""


def crossovers(found: Explanation) -> Figure | LeftOut:
    """By how much the best rival is slower than the plan, along each axis, in multiples of the
    plan's own value; below 1 the rival is chosen.
    """
    title = "What would change the choice"
    crossing = found.crossovers
    curves = [curve for curve in crossing.curves if len(_points(curve)) > 1]
    if not curves:
        why = " ".join(crossing.notes) or "There is no other plan to compare with."
        return LeftOut(CROSSOVERS, title, f"Nothing was compared: {why.rstrip('.')}.")
    data = [_line(curve, COLOURS[n % len(COLOURS)]) for n, curve in enumerate(curves)]
    data += [_crossings(found)] if crossing.found else []
    own = {"x0": 1, "x1": 1, "yref": "paper", "y0": 0, "y1": 1}
    equal = {"xref": "paper", "x0": 0, "x1": 1, "y0": 1, "y1": 1}
    line = {"color": GREY, "dash": "dot", "width": 1.5}
    rows = [(one.what, one.at, one.before) for one in crossing.found]
    rows += [(note, "-", "-") for note in crossing.notes]
    return Figure(
        CROSSOVERS,
        title,
        f"Lines along {len(curves)} axes: how many times as long the best rival takes as the plan",
        "Above the dotted line the plan is chosen, below it the rival. Each axis is in multiples "
        "of the plan's own value: 2 is twice the resolution's edge, the steps or the bandwidth. "
        f"Ratios beyond {LEAST} and {MOST} are drawn there. The commands check each crossover.",
        data,
        {
            "xaxis": {"title": {"text": "times the plan's own value"}, "type": "log"},
            "yaxis": {"title": {"text": "best rival / plan"}},
            "shapes": [{"type": "line", "line": line, **ends} for ends in (own, equal)],
        },
        Table(("what", "at", "kept at"), rows),
        height=400,
        code=tuple((one.what, one.check) for one in crossing.found),
    )


def _line(curve: Curve, colour: str) -> dict[str, Any]:
    points = _points(curve)
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": f"{curve.link} bandwidth" if curve.link else curve.axis,
        "x": [point.value / curve.own for point, _ in points],
        "y": [min(MOST, max(LEAST, ratio)) for _, ratio in points],
        "text": [str(point.rival) for point, _ in points],
        "hovertemplate": "%{x:.3g} times: %{text} takes %{y:.3g} times as long<extra></extra>",
        "line": {"color": colour},
        "marker": {"size": 6, "color": colour},
    }


def _crossings(found: Explanation) -> dict[str, Any]:
    """Marks where another plan is chosen first."""
    own = {(curve.axis, curve.link): curve.own for curve in found.crossovers.curves}
    crossing = [
        (one, ratio)
        for one in found.crossovers.found
        if (one.axis, one.link) in own and (ratio := _ratio(one.lost)) is not None
    ]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "another is chosen",
        "x": [one.lost.value / own[one.axis, one.link] for one, _ in crossing],
        "y": [min(MOST, max(LEAST, ratio)) for _, ratio in crossing],
        "text": [one.what for one, _ in crossing],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"size": 14, "symbol": "x", "color": RED},
    }


def _points(curve: Curve) -> list[tuple[Compared, float]]:
    points = ((point, _ratio(point)) for point in curve.points)
    return [(point, ratio) for point, ratio in points if ratio is not None]


def _ratio(point: Compared) -> float | None:
    """How many times as long the rival takes, each with its lead; None where one can't run."""
    if point.rival_s is None or point.own_s is None:
        return None
    return point.rival_s * point.rival_lead / (point.own_s * point.own_lead)
