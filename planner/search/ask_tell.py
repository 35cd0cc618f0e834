"""The study's loop: asks a sampler for configurations, runs them in turns, tells what came out."""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from optuna.pruners import NopPruner
from optuna.trial import FrozenTrial, Trial, TrialState

from ditplan.planner.objectives import FASTEST
from ditplan.planner.search.acquisition import FIRST_BATCH, NEXT_BATCH, TOLERANCE, was_tried
from ditplan.planner.search.parameters import ParameterSpace
from ditplan.planner.search.policy import MeasurementPolicy
from ditplan.planner.search.racing import (
    MOST_ROUNDS,
    START,
    Behind,
    RacingPruner,
    behind_in,
    leader_of,
)
from ditplan.planner.search.ranking import PricedCandidate, build_plan
from ditplan.planner.search.sampler import CANDIDATE, PlannerSampler, optuna_sampler
from ditplan.planner.search.storage import open_storage, open_study, open_trials
from ditplan.planner.search.trials import cause_in, measurement_of
from ditplan.planner.task import Task
from ditplan.profiles.errors import ClusterError, DitplanError, InputError
from ditplan.profiles.plan import ExecutionPlan, Measurement

FRUITLESS_ASKS = 200
"""A search ends when so many asks in a row bring no legal configuration that wasn't tried."""

MEMORY, REASON = "memory_bytes", "reason"
"""User attributes: the most that a run needed, and why a trial was pruned or failed."""


def with_times_before(
    fitting: Sequence[PricedCandidate], resume: ExecutionPlan | None
) -> Sequence[PricedCandidate]:
    """The candidates with what those that a plan knows took when it was made.

    Raises:
        InputError: the plan's own isn't among them.
    """
    if resume is None:
        return fitting
    own = resume.configuration.key
    before_s = {one.configuration.key: one.measured_s for one in resume.runner_ups}
    before_s[own] = resume.measurement.latency_s if resume.measurement else None
    if own not in {one.configuration.key for one in fitting}:
        raise InputError(
            f"the plan to go on from runs {resume.configuration}, which isn't among what there is "
            "to choose from here; tune with the settings that it was tuned with, or without it"
        )
    return [replace(one, before_s=before_s.get(one.configuration.key)) for one in fitting]


class AskTell:
    """One go at measuring a task's candidates. A trial's intermediate values are seconds by round,
    its value is their median.
    """

    def __init__(
        self,
        task: Task,
        fitting: Sequence[PricedCandidate],
        policy: MeasurementPolicy,
        say: Callable[[str], None],
    ) -> None:
        """`fitting` are the priced candidates, fastest first."""
        self.task, self.policy, self.say = task, policy, say
        self.storage = open_storage(policy.journal)
        pruner = RacingPruner() if task.objective == FASTEST else NopPruner()
        self.study = open_study(
            task, policy.sampler, self.storage, pruner, policy.journal, policy.resume
        )
        fitting = with_times_before(fitting, policy.resume)
        self.space = ParameterSpace(task, fitting)
        self.candidates = {ranked.configuration.key: ranked for ranked in fitting}
        self.planner: PlannerSampler | None = None
        if policy.sampler == "planner":
            self.planner = PlannerSampler(
                self.space,
                lambda study: self.results(),
                policy.top,
                task.objective,
                task.workload.batch,
                say,
                policy.resume.configuration.key if policy.resume else None,
            )
        seed = len(self.study.get_trials(deepcopy=False))
        self.study.sampler = self.planner or optuna_sampler(policy.sampler, seed)
        self.refusals, self.exhausted = list[str](), ""
        self.failures: dict[str, str] = {}
        self.lost_ranks: set[str] = set()
        self.running: dict[str, Trial] = {}
        self.copies: list[tuple[Trial, str]] = []
        self.plans: dict[str, ExecutionPlan] = {}
        self.started = time.monotonic()

    @property
    def ended(self) -> str:
        """Why no more were tried, if the sampler says so."""
        return self.planner.ended if self.planner else self.exhausted

    def run(self) -> list[PricedCandidate]:
        """Measures what is worth it and isn't in the study; returns all with what came out.

        A trial that was begun in an earlier go is finished first.
        """
        begun = self._resume()
        for ranked in self.results():
            if ranked.measurement and ranked.configuration.key not in self.running:
                self.say(f"{ranked.configuration}: measured before")
        while batch := [*begun, *self._ask(begun)]:
            has_time = self._run_rounds(batch)
            self._tell_copies()
            if not has_time:
                break
            begun = []
        self._finish(list(self.running))
        return self.results()

    def results(self) -> list[PricedCandidate]:
        """All candidates with what the study has of them, and what failed in this go."""
        known = {
            str(trial.user_attrs.get(CANDIDATE)): trial
            for trial in self.study.get_trials(deepcopy=False)
            if trial.intermediate_values and trial.state != TrialState.FAIL
        }
        results = list(self.candidates.values())
        for row, (key, ranked) in enumerate(self.candidates.items()):
            if failure := self.failures.get(key):
                results[row] = replace(ranked, failure=failure)
            elif trial := known.get(key):
                results[row] = replace(ranked, measurement=self._measurement(trial, ranked))
        return results

    def _resume(self) -> list[str]:
        """Takes over the trials that an earlier go has left open, and what other samplers than the
        planner's own found; returns the candidates to go on with.
        """
        for frozen in self.study.get_trials(deepcopy=False):
            key = frozen.user_attrs.get(CANDIDATE)
            if not self.planner and key is not None and key not in self.candidates:
                found = self.space.find(frozen.params)
                if isinstance(found, PricedCandidate) and found.configuration.key == key:
                    self.candidates[key] = found
        for trial in open_trials(self.study, self.storage):
            key = str(trial.user_attrs.get(CANDIDATE))
            if key in self.candidates:
                self.running[key] = trial
            else:
                self._end(trial, TrialState.FAIL, "no longer among the candidates to measure")
        return list(self.running)

    def _ask(self, begun: Sequence[str]) -> list[str]:
        """Asks for the next batch, to run beside what was begun before; empty to end."""
        if self.planner:
            size = self.planner.propose(self.study, finishing=bool(begun))
        else:
            size = 0 if begun or self.exhausted else self._batch_size()
        start = self._start_beside(begun)
        batch: list[str] = []
        illegal: list[tuple[Trial, str]] = []
        fruitless = 0
        while len(batch) < size and not self.exhausted:
            trial = self.study.ask()
            found = self.space.find(self.space.suggest(trial))
            fruitless += 1
            if isinstance(found, str):
                illegal.append((trial, found))
                # a Gaussian process asks for the same again unless it is pending
                if self.policy.sampler != "gp":
                    self._prune_illegal(illegal.pop())
            elif found.configuration.key in self.running or self._was_tried(found):
                self.copies.append((trial, found.configuration.key))
            else:
                fruitless = 0
                batch.append(self._begin(trial, found, start))
            if fruitless >= FRUITLESS_ASKS:
                self.exhausted = f"no other legal plan in {fruitless} asks"
        for each in illegal:
            self._prune_illegal(each)
        if not batch:
            self._tell_copies()
        if self.exhausted:
            self.say(f"sampler {self.policy.sampler}: {self.exhausted}")
        return batch

    def _batch_size(self) -> int:
        """How many plans an Optuna sampler is asked for; the first one is the baseline."""
        tried = sum(map(was_tried, self.results()))
        if not tried:
            baseline = next(r for r in self.candidates.values() if r.is_baseline)
            parameters = self.space.parameters(baseline.configuration)
            self.study.enqueue_trial(parameters, skip_if_exists=True)
        left = self.policy.top + 1 - tried
        return min(left, NEXT_BATCH if tried else FIRST_BATCH + 1)

    def _start_beside(self, begun: Sequence[str]) -> int:
        """The round in which trials start beside those that were begun: the same, else the next."""
        if begun:
            return max(int(self.running[key].user_attrs[START]) for key in begun)
        trials = self.study.get_trials(deepcopy=False)
        return max((n for trial in trials for n in trial.intermediate_values), default=-1) + 1

    def _begin(self, trial: Trial, ranked: PricedCandidate, start: int) -> str:
        key = ranked.configuration.key
        trial.set_user_attr("mesh", str(ranked.configuration))
        trial.set_user_attr("baseline", ranked.is_baseline)
        trial.set_user_attr(START, start)
        trial.set_user_attr(CANDIDATE, key)
        self.candidates.setdefault(key, ranked)
        self.running[key] = trial
        return key

    def _run_rounds(self, batch: Sequence[str]) -> bool:
        """Runs each candidate once a round, in turn, so that a clock that drifts touches all alike,
        and the fastest one so far beside them.

        Returns whether there was time for all of it. The fastest one's trial stays open.
        """
        start = self._start_beside(batch)
        self.plans |= {key: self._plan(self.candidates[key]) for key in batch}
        running, number = [*batch, *(self._leader() - {*batch})], start
        while number < start + self.policy.rounds or self._is_close(start, number):
            for key in list(running):
                if number in self._runs()[key]:
                    continue
                if self._budget_is_spent() and any(self._runs().values()):
                    self.say(f"budget of {self.policy.budget_s:g} s is spent")
                    return False
                if not self._run_once(key, number):
                    running.remove(key)
            behind = behind_in(self.study)
            for key in [key for key in running if self.running[key].should_prune()]:
                running.remove(key)
                self._stop_running(key, behind[self.running[key].number])
            number += 1
        leader = self._leader()
        self._finish([key for key in self.running if key not in leader])
        return True

    def _runs(self) -> dict[str, dict[int, float]]:
        """Seconds by round of all candidates in the study that didn't fail."""
        return {
            str(trial.user_attrs[CANDIDATE]): dict(trial.intermediate_values)
            for trial in self.study.get_trials(deepcopy=False)
            if trial.state != TrialState.FAIL and CANDIDATE in trial.user_attrs
        }

    def _leader(self) -> set[str]:
        """The fastest one of all, if its trial is still open."""
        runs = {key: found for key, found in self._runs().items() if found}
        return ({leader_of(runs)} if runs else set()) & self.running.keys()

    def _is_close(self, start: int, number: int) -> bool:
        """Whether more rounds could show another one to be faster by more than the tolerance."""
        behind = behind_in(self.study).values()
        can_change = any(one.may_be_ahead_by(TOLERANCE) for one in behind)
        return can_change and number < start + MOST_ROUNDS

    def _run_once(self, key: str, number: int) -> bool:
        """Whether a run of a candidate succeeded."""
        trial, plan = self.running[key], self.plans[key]
        try:
            run = self.policy.measure(plan)
        except DitplanError as error:
            if self._may_be_tried_again(key, error):
                return self._run_once(key, number)
            self._fail(key, error)
            return False
        trial.report(run.latency_s, number)
        if run.memory_bytes is not None:
            known = trial.user_attrs.get(MEMORY, 0)
            trial.set_user_attr(MEMORY, max(known, run.memory_bytes))
        done = len(self._runs()[key])
        self.say(f"{self.candidates[key].configuration}, run {done}: {run.latency_s:.4g} s")
        return True

    def _may_be_tried_again(self, key: str, error: DitplanError) -> bool:
        """Whether a plan has lost its ranks for the first time: that may be nothing of its own."""
        is_first = isinstance(error, ClusterError) and error.ranks_were_lost
        is_first = is_first and key not in self.lost_ranks
        if is_first:
            self.lost_ranks.add(key)
            mesh, cause = self.candidates[key].configuration, cause_in(str(error))
            self.say(f"{mesh}: {cause}; it is run once more, on new ranks")
        return is_first

    def _stop_running(self, key: str, behind: Behind) -> None:
        """Ends a trial that is clearly slower: pruned if it lacks runs; its measurements stay."""
        runs = len(self._runs()[key])
        if runs >= self.policy.rounds:
            self._finish([key])
            return
        reason = f"{math.expm1(behind.mean):.0%} slower than the fastest after {runs} runs"
        self._end(self.running.pop(key), TrialState.PRUNED, reason)
        self.say(f"{self.candidates[key].configuration}: not run any more: {reason}")

    def _plan(self, ranked: PricedCandidate) -> ExecutionPlan:
        t = self.task
        # what fell back would be timed as something that it isn't
        unreplaced = replace(ranked, fallback="refuse")
        plan = build_plan(unreplaced, t.spec, t.workload, t.cluster, t.backend, t.text_lengths)
        resume = self.policy.resume
        return plan if resume is None else plan.model_copy(update=resume.kept_when_resumed)

    def _budget_is_spent(self) -> bool:
        budget_s = self.policy.budget_s
        return budget_s is not None and time.monotonic() - self.started >= budget_s

    def _fail(self, key: str, error: DitplanError) -> None:
        whole = str(error) or type(error).__name__
        self._end(self.running.pop(key), TrialState.FAIL, whole)
        self.say(f"{self.candidates[key].configuration}: failed: {whole}")
        if isinstance(error, InputError):
            self.refusals.append(whole)
        self.failures[key] = cause_in(whole)

    def _was_tried(self, ranked: PricedCandidate) -> bool:
        key = ranked.configuration.key
        return key in self.failures or bool(self._runs().get(key))

    def _prune_illegal(self, found: tuple[Trial, str]) -> None:
        trial, why = found
        trial.set_constraint("legal", 1.0)
        self._end(trial, TrialState.PRUNED, f"not legal: {why}")

    def _tell_copies(self) -> None:
        """Tells trials that ask for what was tried what came out of it."""
        runs = self._runs()
        for trial, key in self.copies:
            reason = f"the same as {self.candidates[key].configuration}, which was asked for before"
            if own := runs.get(key):
                trial.set_user_attr(REASON, reason)
                self._tell(trial, statistics.median(own.values()))
            else:
                self._end(trial, TrialState.PRUNED, f"{reason} and has no measurement")
        self.copies = []

    def _finish(self, keys: Iterable[str]) -> None:
        """Tells the medians; a trial without any run stays open for a later search."""
        for key in keys:
            if runs := self._runs()[key]:
                self._tell(self.running.pop(key), statistics.median(runs.values()))

    def _end(self, trial: Trial, state: TrialState, reason: str) -> None:
        trial.set_user_attr(REASON, reason)
        self._tell(trial, state=state)

    def _tell(
        self, trial: Trial, value: float | None = None, state: TrialState | None = None
    ) -> None:
        try:
            self.study.tell(trial, value, state=state)
        except RuntimeError as error:
            # so a sampler says that it has nothing left; the trial is stored all the same
            if "`Study.stop`" not in str(error):
                raise
            self.exhausted = "it has asked for all there is"

    def _measurement(self, trial: FrozenTrial, ranked: PricedCandidate) -> Measurement:
        everywhere = self.task.cluster.devices
        devices = [everywhere[rank] for rank in ranked.configuration.ranks]
        memory_bytes = trial.user_attrs.get(MEMORY)
        return measurement_of(
            trial.intermediate_values, memory_bytes, trial.datetime_complete, devices
        )
