"""Racing: who is slower, and who can't be told apart, from runs that were made in turn."""

import math
import statistics
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from optuna import Study
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial, TrialState

Runs = Mapping[int, float]
"""Seconds by round."""

Name = TypeVar("Name", bound=Hashable)

START = "start"
"""The user attribute of a trial that says in which round it began."""

LEAST_ROUNDS = 2
"""Fewer rounds tell nothing: one run may have had a hiccup."""

MOST_ROUNDS = 8
"""Rounds after which what can't be told apart is taken as equal."""

NOISE = 0.03
"""How much the ratio of two runs of a round varies, in logs, before that is known: each run by two
percent."""

NOISE_WEIGHT = 2.0
"""Such a guess counts as much as so many rounds."""

SURE, LIKELY = 0.99, 0.95
"""How sure it is that a plan is slower before it is run no more, and that it isn't faster before it
is run often enough."""


@dataclass(frozen=True)
class Behind:
    """How far a candidate is behind the leader: the mean of the logs of their ratios, its standard
    error with its degrees of freedom, and in how many rounds both ran.
    """

    mean: float
    error: float
    free: float
    rounds: int

    @property
    def is_clear(self) -> bool:
        """Whether it is slower for sure."""
        least = self.mean - self._quantile(SURE) * self.error
        return self.rounds >= LEAST_ROUNDS and least > 0

    def may_be_ahead_by(self, share: float) -> bool:
        """Whether it may be faster than the leader by more than that share."""
        least = self.mean - self._quantile(LIKELY) * self.error
        return self.rounds >= LEAST_ROUNDS and least < math.log1p(-share)

    def _quantile(self, probability: float) -> float:
        """Of Student's t."""
        # late, as in `refit`
        from scipy.special import stdtrit

        return float(stdtrit(self.free, probability))


def leader_of(runs: Mapping[Name, Runs]) -> Name:
    """Whose median is lowest."""
    return min(runs, key=lambda name: statistics.median(runs[name].values()))


def behind_leader(runs: Mapping[Name, Runs]) -> dict[Name, Behind]:
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
    known = NOISE_WEIGHT + free
    noise = math.sqrt((NOISE_WEIGHT * NOISE**2 + squares) / known)
    return {
        name: Behind(statistics.fmean(logs), noise / math.sqrt(len(logs)), known, len(logs))
        for name, logs in ratios.items()
    }


class RacingPruner(BasePruner):
    """Ends trials that are clearly slower than the fastest of those that are run in turn.

    Their intermediate values are seconds by round. They are compared by the rounds since the last
    of them began, as the user attribute `start` says.
    """

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether the trial is slower for sure."""
        behind = behind_in(study).get(trial.number)
        return behind is not None and behind.is_clear


def behind_in(study: Study) -> dict[int, Behind]:
    """How far each open trial of a study is behind the fastest of them, by trial number."""
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    start = max((trial.user_attrs.get(START, 0) for trial in running), default=0)
    recent = {
        trial.number: {n: s for n, s in trial.intermediate_values.items() if n >= start}
        for trial in running
    }
    return behind_leader({number: runs for number, runs in recent.items() if runs})
