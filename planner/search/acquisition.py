"""Which candidates to measure next, and when no other is worth it."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ditplan.planner.objectives import Objective
from ditplan.planner.search.correction import QUANTILE, Array, Refit, components_of, refit
from ditplan.planner.search.ranking import PricedCandidate, to_measure

FIRST_BATCH = 3
"""How many are measured, beside the baseline, before predictions are corrected."""

NEXT_BATCH = 3
"""How many are measured in turn after that."""

MODES_OF_A_MESH = 2
"""Of the modes of one mesh only the first ones are in the first batch: they differ by what was
measured already, the exchanges of other meshes by what wasn't."""

TOLERANCE = 0.03
"""Measuring ends when no other plan can be faster by more than this share."""

OUT_OF_MEMORY = "out of memory"
"""What PyTorch and NCCL say when a device's memory isn't enough."""


def shortlist(fitting: Sequence[PricedCandidate], top: int) -> list[PricedCandidate]:
    """The first one, the baseline, then the other ones of the top: a short budget compares with
    the baseline.
    """
    places: Counter[tuple[object, ...]] = Counter()
    chosen = []
    for ranked in fitting:
        place = (ranked.configuration.mesh, ranked.configuration.placement)
        places[place] += 1
        if places[place] <= MODES_OF_A_MESH:
            chosen.append(ranked)
    first, *others = chosen[:top]
    baseline = [ranked for ranked in fitting if ranked.is_baseline and ranked is not first]
    return [first, *baseline, *(ranked for ranked in others if not ranked.is_baseline)]


def untried(results: Sequence[PricedCandidate], top: int) -> list[PricedCandidate]:
    """What of the first batch was neither measured nor failed."""
    first = shortlist(results, min(top, FIRST_BATCH))
    return [ranked for ranked in first if not was_tried(ranked)]


def trials_left(results: Sequence[PricedCandidate], top: int) -> int:
    """How many more may be tried, of the `top` and the baseline."""
    return len(shortlist(results, top)) - sum(map(was_tried, results))


def was_tried(ranked: PricedCandidate) -> bool:
    """Whether it was measured, or failed."""
    return bool(ranked.measurement or ranked.failure)


def next_batch(results: Sequence[PricedCandidate], size: int) -> list[PricedCandidate]:
    """The unmeasured candidates with most to expect, `size` at most.

    Each is chosen as if the ones before it had turned out as expected, so that a batch doesn't
    ask the same thing twice.
    """
    components, measured_s = components_of(results), _measured_s(results)
    chosen: list[int] = []
    for _ in range(min(size, NEXT_BATCH)):
        found = refit(components, measured_s)
        gains = _expected_gains(found, min(measured_s.values()))
        open_rows = [row for row in _open_rows(results) if row not in chosen]
        if not open_rows:
            break
        best = max(open_rows, key=lambda row: gains[row])
        chosen.append(best)
        measured_s[best] = float(found.latency_s[best])
    return [results[row] for row in chosen]


def next_by_objective(
    results: Sequence[PricedCandidate], size: int, objective: Objective, pictures: int
) -> list[PricedCandidate]:
    """The unmeasured candidates that should serve an objective better than all measured ones do,
    `size` at most; `pictures` are made by a call.

    While no measured one is fast enough, those that come nearest.
    """
    expected = corrected(results)
    able = [expected[row] for row in _open_rows(results)]
    measured = [ranked.figures(pictures) for ranked in results if ranked.measurement]
    best = min((objective.key(one) for one in measured if objective.is_met(one)), default=None)
    if best is not None:
        weighed = [(one, one.figures(pictures)) for one in able]
        able = [one for one, own in weighed if objective.is_met(own) and objective.key(own) < best]
    return to_measure(able, objective, pictures)[: min(size, NEXT_BATCH)]


def could_now_win(results: Sequence[PricedCandidate], size: int) -> list[PricedCandidate]:
    """The candidates that could be clearly faster than the fastest that was measured now, `size` at
    most, those that are expected to be fastest first.

    What was measured before counts as it was then, else the lower end of the 90% interval as
    predictions were corrected then: perhaps only the resumed plan has become slower. So one is
    measured first, and then all count as slower by as much as the one that has changed least.
    """
    now_s = _measured_s(results)
    before_s = {row: one.before_s for row, one in enumerate(results) if one.before_s is not None}
    changes = [now_s[row] / before_s[row] for row in now_s.keys() & before_s.keys()]
    is_known = len(changes) > 1
    change = min(changes) if is_known else min([1.0, *changes])
    unchanged_s = {row: seconds / change for row, seconds in now_s.items()}
    found = refit(components_of(results), unchanged_s | before_s)
    lowest_s = found.latency_s * np.exp(-QUANTILE * found.spread)
    expected_s = {
        row: change * before_s.get(row, float(found.latency_s[row])) for row in _open_rows(results)
    }
    enough_s = min(now_s.values()) * (1 - TOLERANCE)
    able = [
        row for row in expected_s if change * before_s.get(row, float(lowest_s[row])) < enough_s
    ]
    able.sort(key=expected_s.__getitem__)
    return [results[row] for row in able[: min(size, NEXT_BATCH if is_known else 1)]]


def most_to_gain(results: Sequence[PricedCandidate]) -> float:
    """By which share of the best measured latency an unmeasured candidate can be faster at most:
    by the lower end of its 90% interval. Not above 0 if none can be.
    """
    measured_s = _measured_s(results)
    found = refit(components_of(results), measured_s)
    lowest_s = found.latency_s * np.exp(-QUANTILE * found.spread)
    best_s = min(measured_s.values())
    return max((1 - float(lowest_s[row]) / best_s for row in _open_rows(results)), default=0.0)


def corrected(results: Sequence[PricedCandidate]) -> list[PricedCandidate]:
    """The same with the latencies that are expected of those that weren't tried, by what was
    measured of the others.
    """
    measured_s = _measured_s(results)
    if not measured_s:
        return list(results)
    expected_s = refit(components_of(results), measured_s).latency_s
    return [
        ranked if was_tried(ranked) else replace(ranked, corrected_s=float(expected_s[row]))
        for row, ranked in enumerate(results)
    ]


def _measured_s(results: Sequence[PricedCandidate]) -> dict[int, float]:
    return {
        row: ranked.measurement.latency_s
        for row, ranked in enumerate(results)
        if ranked.measurement
    }


def _open_rows(results: Sequence[PricedCandidate]) -> list[int]:
    """Candidates that weren't tried, without those that need as much memory as one that failed for
    lack of it.
    """
    room = min(
        (
            ranked.prediction.memory_bytes
            for ranked in results
            if ranked.failure and OUT_OF_MEMORY in ranked.failure.lower()
        ),
        default=math.inf,
    )
    return [
        row
        for row, ranked in enumerate(results)
        if not was_tried(ranked) and ranked.prediction.memory_bytes < room
    ]


def _expected_gains(found: Refit, best_s: float) -> Array:
    """Expected improvement on the best, in logs, of candidates whose logs are normal."""
    # late, as in `refit`
    from scipy.special import ndtr

    ahead = np.log(best_s) - np.log(found.latency_s)
    score = ahead / found.spread
    density = np.exp(-(score**2) / 2) / math.sqrt(2 * math.pi)
    gains: Array = ahead * ndtr(score) + found.spread * density
    return gains
