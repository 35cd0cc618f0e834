"""Who chooses the plans that are run: the planner as a sampler of Optuna's, and Optuna's own."""

import importlib.util
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, BruteForceSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from ditplan.planner.objectives import FASTEST, Objective
from ditplan.planner.search.acquisition import (
    FIRST_BATCH,
    TOLERANCE,
    could_now_win,
    most_to_gain,
    next_batch,
    next_by_objective,
    trials_left,
    untried,
    was_tried,
)
from ditplan.planner.search.parameters import ParameterSpace
from ditplan.planner.search.ranking import PricedCandidate
from ditplan.planner.search.sampler_names import SamplerName
from ditplan.profiles.errors import InputError, Setting

CANDIDATE = "candidate"
"""The user attribute of a trial that names the configuration it runs."""

STARTUP_TRIALS = FIRST_BATCH + 1
"""So many trials, the planner's first batch and the baseline, are drawn at random by samplers that
learn."""


class PlannerSampler(BaseSampler):
    """Proposes the configurations that the cost model speaks for: those predicted fastest and the
    baseline first, then by expected improvement over predictions that are corrected by what was
    measured.

    `results` reads a study: all candidates, fastest first as predicted, with what came out of those
    that were tried. Of them `top` and the baseline may be tried; `pictures` are made by a call.
    `ended` says why no more are proposed, if the model does. The configuration to `resume`, by its
    key, is the first one; then only what could now be faster follows, unless it failed.
    """

    def __init__(
        self,
        space: ParameterSpace,
        results: Callable[[Study], Sequence[PricedCandidate]],
        top: int,
        objective: Objective = FASTEST,
        pictures: int = 1,
        say: Callable[[str], None] = lambda message: None,
        resume: str | None = None,
    ) -> None:
        self._resume = resume
        self._space, self._results, self._top, self._say = space, results, top, say
        self._objective, self._pictures = objective, pictures
        self._proposed: list[PricedCandidate] = []
        self._independent = RandomSampler()
        self.ended = ""

    def propose(self, study: Study, *, finishing: bool = False) -> int:
        """Decides on what the next trials run; returns how many these are.

        A study that goes on is `finishing` trials that were begun: beside them only what is missing
        of the first batch is run.
        """
        results = self._results(study)
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        begun = {trial.user_attrs.get(CANDIDATE) for trial in running}
        first = [r for r in self._first(results) if r.configuration.key not in begun]
        self._proposed = first if first or finishing else self._next(results)
        return len(self._proposed)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """All parameters."""
        return self._space.distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The next of the proposed configurations; stops the study if none is left."""
        if not self._proposed and not self.propose(study):
            study.stop()
            return {}
        return self._space.parameters(self._proposed.pop(0).configuration)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Anything, for parameters that aren't the planner's."""
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def _first(self, results: Sequence[PricedCandidate]) -> list[PricedCandidate]:
        """What of the first batch was neither measured nor failed."""
        resumed = [one for one in results if one.configuration.key == self._resume]
        if not resumed or resumed[0].failure:
            return untried(results, self._top)
        return [one for one in resumed if not was_tried(one)]

    def _next(self, results: Sequence[PricedCandidate]) -> list[PricedCandidate]:
        """The next batch; empty when no more are to be tried or none is worth it."""
        left = trials_left(results, self._top)
        known = sum(ranked.measurement is not None for ranked in results)
        if left <= 0 or not known:
            return []
        if self._objective != FASTEST:
            batch = next_by_objective(results, left, self._objective, self._pictures)
            self.ended = "" if batch else "no unmeasured plan should serve the objective better"
            return batch
        if self._resume is not None:
            batch = could_now_win(results, left)
            self.ended = (
                "" if batch else f"no other plan can now be more than {TOLERANCE:.0%} faster"
            )
            names = "; ".join(str(ranked.configuration) for ranked in batch)
            self._say(self.ended or f"could now be faster: {names}")
            return batch
        if most_to_gain(results) <= TOLERANCE:
            self.ended = f"no unmeasured plan can be more than {TOLERANCE:.0%} faster"
            self._say(f"{self.ended}, by {known} measured ones; stopped {left} before the end")
            return []
        batch = next_batch(results, left)
        names = "; ".join(str(ranked.configuration) for ranked in batch)
        self._say(f"predictions corrected by {known} measured plans; to be tried next: {names}")
        return batch


def optuna_sampler(name: SamplerName, seed: int) -> BaseSampler:
    """One of Optuna's samplers.

    Raises:
        InputError: it needs a package that isn't there.
    """
    if name == "gp":
        missing = [each for each in ("torch", "scipy") if not importlib.util.find_spec(each)]
        if missing:
            needed = " and ".join(missing)
            raise InputError(
                Setting("sampler", name),
                f": Optuna's Gaussian processes need {needed}, not installed here; install "
                f"{'it' if len(missing) == 1 else 'them'}, or use ",
                Setting("sampler", "tpe"),
            )
        return GPSampler(
            seed=seed, n_startup_trials=STARTUP_TRIALS, warn_independent_sampling=False
        )
    if name == "tpe":
        return TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS, constant_liar=True)
    if name == "random":
        return RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return BruteForceSampler(seed=seed)
