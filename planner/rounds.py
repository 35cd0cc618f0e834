"""Who is slower, and who can't be told apart, from runs that were made in turn."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

Runs = Mapping[int, float]
"""Seconds by round."""

LEAST_ROUNDS = 2
"""Nobody is clearly slower before so many rounds: one run may have had a hiccup."""

MOST_ROUNDS = 8
"""Rounds after which what can't be told apart is taken as equal."""

NOISE = 0.014
"""How much the ratio of two runs of a round varies, in logs, before that is known: each run by a
percent."""

NOISE_WEIGHT = 2.0
"""Such a guess counts as much as so many rounds."""

SURE = 2.33
"""Standard errors that a mean is exceeded by in one case of a hundred."""

LIKELY = 1.645
"""The same for one case of twenty."""


@dataclass(frozen=True)
class Behind:
    """How far a candidate is behind the leader: the mean of the logs of their ratios, its standard
    error, and in how many rounds both ran.
    """

    mean: float
    error: float
    rounds: int

    @property
    def is_clear(self) -> bool:
        """Whether it is slower for sure."""
        return self.rounds >= LEAST_ROUNDS and self.mean > SURE * self.error

    def may_be_ahead_by(self, share: float) -> bool:
        """Whether it may be faster than the leader by more than that share."""
        return LIKELY * self.error - self.mean > -math.log1p(-share)


def leader_of(runs: Mapping[str, Runs]) -> str:
    """Whose median is lowest."""
    return min(runs, key=lambda name: statistics.median(runs[name].values()))


def behind_leader(runs: Mapping[str, Runs]) -> dict[str, Behind]:
    """How far each of the others is behind the leader, by the rounds in which both ran.

    A Wilcoxon test of three rounds can't be surer than one in eight, and of five than one in 32. So
    ratios are taken as log-normal, with one variance for all, to which every pair contributes.
    """
    if not runs:
        return {}
    first = runs[leader_of(runs)]
    ratios = {
        name: [math.log(own[number] / first[number]) for number in sorted(own.keys() & first)]
        for name, own in runs.items()
        if own is not first
    }
    ratios = {name: logs for name, logs in ratios.items() if logs}
    squares = math.fsum(statistics.pvariance(logs) * len(logs) for logs in ratios.values())
    free = sum(len(logs) - 1 for logs in ratios.values())
    noise = math.sqrt((NOISE_WEIGHT * NOISE**2 + squares) / (NOISE_WEIGHT + free))
    return {
        name: Behind(statistics.fmean(logs), noise / math.sqrt(len(logs)), len(logs))
        for name, logs in ratios.items()
    }
