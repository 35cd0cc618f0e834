"""What is known of plans beside their price, in a report: their quality, and what they took."""

from typing import Any

from ditplan.explaining.explanation import Explanation
from ditplan.reporting.figure import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    Figure,
    LeftOut,
    Table,
    seconds_text,
)

QUALITY, MEASURED = "quality", "measured"


def quality(found: Explanation) -> Figure | LeftOut:
    """How far results are from one device's, against speed, where that was measured."""
    title = "Quality against speed"
    known = [one for one in found.subject.fitting if one.quality.relative_l2 is not None]
    if not known:
        why = (
            "No approximate plan's distance from one device was measured for these weights at this "
            "workload. Exact plans equal one device up to rounding."
        )
        return LeftOut(QUALITY, title, why)
    exact = next((one for one in found.subject.fitting if one.quality.exact), None)
    shown = [*([exact] if exact else []), *known[:40]]
    data = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": name,
            "x": [one.prediction.latency_s for one in group],
            "y": [one.quality.relative_l2 or 0.0 for one in group],
            "text": [str(one.configuration) for one in group],
            "hovertemplate": "%{text}: %{x:.4g} s, distance %{y:.3g}<extra></extra>",
            "marker": {"size": 10, "color": colour},
        }
        for name, colour, group in (
            ("exact", GREEN, [one for one in shown if one.quality.exact]),
            ("approximate", ORANGE, known[:40]),
        )
        if group
    ]
    rows = [
        (
            str(one.configuration),
            seconds_text(one.prediction.latency_s),
            f"{one.quality.relative_l2 or 0.0:.3g}",
        )
        for one in shown
    ]
    return Figure(
        QUALITY,
        title,
        f"Relative L2 distance from one device of {len(shown)} plans against their latency",
        "The relative L2 distance of the final latents from one device's; 0 is exact.",
        data,
        {
            "xaxis": {"title": {"text": "seconds of denoising"}},
            "yaxis": {"title": {"text": "distance"}, "rangemode": "tozero"},
        },
        Table(("plan", "predicted s", "distance"), rows),
    )


def predicted_against_measured(found: Explanation) -> Figure | LeftOut:
    """Predictions of the plans that were run against what they took."""
    title = "Predicted against measured"
    plan, subject = found.subject.plan, found.subject
    runs: list[tuple[str, float, float]] = []
    if plan.measurement is not None:
        predicted_s = (plan.prediction or subject.own.prediction).latency_s
        runs.append((str(plan.configuration), predicted_s, plan.measurement.latency_s))
    runs += [
        (str(one.configuration), one.predicted_s, one.measured_s)
        for one in plan.runner_ups
        if one.measured_s is not None
    ]
    if not runs:
        return LeftOut(MEASURED, title, "No plan was run: this one was made on paper.")
    ends = [
        min(min(p, m) for _, p, m in runs) * 0.95,
        max(max(p, m) for _, p, m in runs) * 1.05,
    ]
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "as predicted",
            "x": ends,
            "y": ends,
            "line": {"dash": "dot", "color": GREY},
            "hoverinfo": "skip",
        },
        {
            "type": "scatter",
            "mode": "markers",
            "name": "plans that were run",
            "x": [predicted_s for _, predicted_s, _ in runs],
            "y": [measured_s for _, _, measured_s in runs],
            "text": [name for name, _, _ in runs],
            "marker": {"size": 11, "color": [BLUE] + [ORANGE] * (len(runs) - 1)},
            "hovertemplate": "%{text}: predicted %{x:.4g}, measured %{y:.4g} s<extra></extra>",
        },
    ]
    rows = [
        (name, seconds_text(p), seconds_text(m), f"{100 * (m / p - 1):+.0f}%")
        for name, p, m in runs
    ]
    return Figure(
        MEASURED,
        title,
        f"Measured against predicted seconds of {len(runs)} plans",
        "On the dotted line what was measured is what was predicted; above it, it took longer.",
        data,
        {
            "xaxis": {"title": {"text": "predicted s"}},
            "yaxis": {"title": {"text": "measured s"}},
        },
        Table(("plan", "predicted s", "measured s", "off by"), rows),
    )
