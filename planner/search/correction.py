"""Corrects predictions by what was measured: each component of a prediction gets a multiplier."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ditplan.planner.search.ranking import PricedCandidate
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.plan import Prediction

Array = NDArray[np.float64]

COMPONENTS = {
    "blocks": "compute",
    "outside": "compute",
    "attention": "attention",
    "ulysses": "ulysses",
    "ring": "ring",
    "gather": "outputs",
    "cfg": "outputs",
    "sends": "sends",
    "bubbles": "waiting",
    "launch": "host",
    "scheduler": "host",
}
"""Which parts of a prediction are wrong together. A part that isn't listed stands for itself."""

QUANTILE = 1.645
"""Standard deviations from the middle of a 90% interval to its ends."""

WIDTHS = (0.03, 0.35)
"""The least and the largest standard deviation of a component's multiplier, in logs, before
anything is measured."""

OWN_SHARE = 0.5
"""How much of that variance is a setting's own, such as that of four ranks for ulysses: the rest is
wrong alike in all plans."""

COMMON_WIDTH = 1.0
"""The standard deviation of what multiplies all seconds: it reorders nothing, so it may be
anything."""

MOST_TIMES = 3.0
"""No multiplier of a component is further from 1 than so many times, up or down."""

RESIDUAL = 0.03
"""How far measured latencies are from corrected predictions, in logs, before that is known."""

RESIDUAL_WEIGHT = 4.0
"""Such a guess counts as much as so many measured plans."""

ITERATIONS = 5
"""Times that latencies are taken as linear in the multipliers' logs, around those found before."""


@dataclass(frozen=True)
class Components:
    """Candidates' predictions by component: `seconds` and the numbers of their `settings`, both
    (candidates, components), and how uncertain each component is, as the standard deviation of its
    multiplier's log.
    """

    names: tuple[str, ...]
    seconds: Array
    settings: NDArray[np.int64]
    widths: Array


@dataclass(frozen=True)
class Refit:
    """Predictions corrected by measurements.

    `latency_s` is what is expected of each candidate and `spread` its standard deviation in logs,
    for one that isn't measured. `multipliers` are those of each candidate's components, without
    what multiplies all seconds: (candidates, components).
    """

    latency_s: Array
    spread: Array
    multipliers: Array


def components_of(found: Sequence[PricedCandidate]) -> Components:
    """The candidates' predictions by component."""
    predictions = [ranked.prediction for ranked in found]
    names, seconds = component_seconds(predictions)
    settings = [
        _numbers([_setting_of(name, ranked.configuration) for ranked in found]) for name in names
    ]
    widths = component_widths(predictions, seconds)
    return Components(names, seconds, np.column_stack(settings), widths)


def refit(components: Components, measured_s: Mapping[int, float]) -> Refit:
    """Corrects predictions by the measured latencies of some of them, by index.

    Each component of a prediction has a multiplier, which is partly the same in all plans and
    partly that of its setting. These are the most likely ones if logs of latencies and of
    multipliers are normal: least squares in logs, shrunk towards 0 by how uncertain the sources of
    a component's parts are. With nothing measured the predictions stay as they are.
    """
    seconds, widths = components.seconds, components.widths
    rows = sorted(measured_s)
    logs = np.log([measured_s[row] for row in rows])
    # (components, candidates, measured): which have the same setting, and how multipliers covary
    same = components.settings.T[:, :, None] == components.settings[rows].T[:, None, :]
    shared = widths[:, None, None] ** 2 * (1 - OWN_SHARE + OWN_SHARE * same)
    multipliers, residual, common = np.zeros_like(seconds), RESIDUAL, 0.0
    expected, slopes = _logs_of(seconds, multipliers)
    explained = np.zeros(len(seconds))
    for _ in range(ITERATIONS if rows else 0):
        # (candidates, measured): how latencies covary
        among = COMMON_WIDTH**2 + np.einsum("ic,cir,rc->ir", slopes, shared, slopes[rows])
        aim = logs - expected[rows] + (slopes[rows] * multipliers[rows]).sum(axis=1)
        inverse = np.linalg.inv(among[rows] + residual**2 * np.eye(len(rows)))
        weights = inverse @ aim
        common = COMMON_WIDTH**2 * float(weights.sum())
        explained = np.einsum("ir,rs,is->i", among, inverse, among)
        multipliers = np.einsum("cir,rc,r->ic", shared, slopes[rows], weights)
        multipliers = np.clip(multipliers, -np.log(MOST_TIMES), np.log(MOST_TIMES))
        residual = _residual(residual**2 * weights, residual**2 * float(np.trace(inverse)))
        expected, slopes = _logs_of(seconds, multipliers)
    unexplained = COMMON_WIDTH**2 + slopes**2 @ widths**2 - explained
    spread = np.sqrt(np.maximum(unexplained, 0.0) + residual**2)
    return Refit(np.exp(expected + common), spread, np.exp(multipliers))


def component_seconds(predictions: Sequence[Prediction]) -> tuple[tuple[str, ...], Array]:
    """The components that occur, and each prediction's seconds: (predictions, components)."""
    occurring = {COMPONENTS.get(part, part) for found in predictions for part in found.parts}
    names = tuple(sorted(occurring))
    column = {name: number for number, name in enumerate(names)}
    seconds = np.zeros((len(predictions), len(names)))
    for row, prediction in enumerate(predictions):
        for part, part_s in prediction.parts.items():
            seconds[row, column[COMPONENTS.get(part, part)]] += part_s
    return names, seconds


def component_widths(predictions: Sequence[Prediction], seconds: Array) -> Array:
    """How uncertain each component is, as the standard deviation of its multiplier's log.

    A prediction's interval is the sum of its parts' shares by source, so the shares that fit all
    intervals best are those of the components.
    """
    # planning on paper does without, in a third of a second less
    from scipy.optimize import nnls

    halves = np.array([(p.interval_s[1] - p.interval_s[0]) / 2 for p in predictions])
    totals = seconds.sum(axis=1)
    shares, _ = nnls(seconds / totals[:, None], halves / totals)
    widths: Array = np.clip(shares / QUANTILE, *WIDTHS)
    return widths


def _setting_of(component: str, candidate: Configuration) -> Hashable:
    """What a component's speed depends on beside how much there is of it."""
    mesh, part = candidate.mesh, candidate.pipefusion
    patches = part.patches if part else 1
    if component in ("compute", "attention", "host"):
        return candidate.mode, mesh.batch_parallel, mesh.sequence_parallel, patches
    degrees = {
        "ulysses": (mesh.ulysses,),
        "ring": (mesh.ring,),
        "outputs": (mesh.batch_parallel, mesh.sequence_parallel),
    }
    return degrees.get(component, (mesh.pipefusion, patches)), candidate.order


def _numbers(settings: Sequence[Hashable]) -> list[int]:
    """Equal settings have the same number."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(setting, len(numbers)) for setting in settings]


def _residual(missed: Array, free: float) -> float:
    """How far measurements are from the fit, averaged with what was assumed; `free` is how many of
    them the fit doesn't use up.
    """
    squares = RESIDUAL_WEIGHT * RESIDUAL**2 + float(np.sum(missed**2))
    return float(np.sqrt(squares / (RESIDUAL_WEIGHT + free)))


def _logs_of(seconds: Array, multipliers: Array) -> tuple[Array, Array]:
    """Logs of the corrected latencies, and how they change with the logs of the multipliers."""
    parts = seconds * np.exp(multipliers)
    totals = parts.sum(axis=1)
    return np.log(totals), parts / totals[:, None]
