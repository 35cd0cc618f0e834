"""Finds the best plan: prices every candidate, and really runs the most promising ones as an
Optuna study.
"""

import hashlib
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, Trial, TrialState

from ditplan.planner.network.topology import Topology
from ditplan.planner.objectives import FASTEST
from ditplan.planner.search.acquisition import (
    TOLERANCE,
    corrected,
    most_to_gain,
    next_batch,
    next_by_objective,
    trials_left,
    untried,
)
from ditplan.planner.search.pricing import price_all
from ditplan.planner.search.ranking import (
    PricedCandidate,
    SearchResult,
    build_plan,
    fingerprint_of,
    in_order,
    to_measure,
)
from ditplan.planner.search.replicas import with_replicas
from ditplan.planner.search.rounds import MOST_ROUNDS, Behind, behind_leader, leader_of
from ditplan.planner.search.trials import (
    cause_in,
    check_trial,
    measurement_of,
    mend_journal,
    parameters_of,
    patching_of,
    refusing_strange_journals,
)
from ditplan.planner.task import Task
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.errors import ClusterError, DitplanError, InputError
from ditplan.profiles.mesh import Mesh, axis_orders
from ditplan.profiles.plan import ExecutionPlan, Measurement

LOCK_GRACE_S = 5
MOST_PATCHES = 2**20
"""What a study allows for patches and warm-up steps: more than anybody asks for."""


@dataclass(frozen=True)
class RunResult:
    """One real run of a plan's denoising loop."""

    latency_s: float
    memory_bytes: int | None = None


@dataclass(frozen=True)
class MeasurementPolicy:
    """How to measure: `top` candidates and the control, `rounds` runs of each, one of each in turn.

    The first ones are those predicted fastest, later ones those that what was measured speaks for.
    What is clearly slower gets fewer runs, what can't be told apart more. `budget_s` ends it:
    nothing new is started then, once one candidate was run. `journal` is the file of the Optuna
    study; a search that finds its own study in there goes on with it.
    """

    measure: Callable[[ExecutionPlan], RunResult]
    top: int = 3
    rounds: int = 3
    budget_s: float | None = None
    journal: Path | None = None


def search(
    task: Task,
    trials: MeasurementPolicy | None = None,
    progress: Callable[[str], None] | None = None,
) -> SearchResult:
    """Ranks all candidates by the objective with predicted latency and, with `trials`, the first
    ones with measured latency.

    Raises:
        InputError: no mesh is legal with these pins, none fits into memory, none is as fast as the
            objective demands, or the cluster profile lacks something. ClusterError: every candidate
            that was tried failed.
    """
    started = time.monotonic()
    say = progress or (lambda message: None)
    topology = Topology(task.cluster)
    priced, pruned = price_all(task, topology)
    if task.objective.name == "throughput":
        priced = with_replicas(task, topology, priced)
    fitting = [ranked for ranked in priced if not ranked.too_big]
    too_big = [ranked for ranked in priced if ranked.too_big]
    say(f"priced {len(priced)} candidates, {len(fitting)} fit")
    swapping = [ranked for ranked in fitting if ranked.warning]
    if swapping:
        say(
            f"warning: {len(swapping)} of them need more memory than there is; "
            f"{swapping[0].configuration}: {swapping[0].warning}"
        )
    ended = ""
    if trials and trials.top > 0:
        fitting = to_measure(fitting, task.objective, task.workload.batch)
        fitting, ended = measured(task, fitting, trials, say)
    return SearchResult(
        ranked=in_order([*fitting, *too_big], topology, task.objective, task.workload.batch),
        legal=len(fitting),
        pruned=pruned,
        search_s=time.monotonic() - started,
        spec=task.spec,
        workload=task.workload,
        cluster=task.cluster,
        backend=task.backend,
        objective=task.objective,
        ended=ended,
    )


def study_name(task: Task) -> str:
    """The study of a task: the same model, workload, cluster and choices go on with the same
    study.
    """
    cluster = fingerprint_of(task.cluster, len(task.cluster.devices))
    allowed = task.allowed
    identity = {
        "model": task.spec.config_hash,
        "workload": task.workload.model_dump(),
        "cluster": cluster.model_dump(),
        "gpus": task.gpus,
        "pins": dict(sorted(task.pins.items())),
        "modes": task.searched_modes,
        "backend": task.backend.name,
        "allowed": None if allowed is None else asdict(replace(allowed, known=None)),
    }
    text = json.dumps(identity, sort_keys=True)
    return f"{task.spec.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def measured(
    task: Task,
    fitting: Sequence[PricedCandidate],
    trials: MeasurementPolicy,
    say: Callable[[str], None],
) -> tuple[list[PricedCandidate], str]:
    """The candidates, those that were tried with their measurement or failure and the others
    corrected by it; and why no more were tried, if the model says so.

    `fitting` are fastest first.

    Raises:
        InputError: all of them failed, one or more for something that the user gave.
        ClusterError: all of them failed for other reasons.
    """
    study = _open_study(task, trials.journal)
    measuring = _Measuring(task, study, trials, say)
    results = measuring.run(fitting)
    failed = [ranked for ranked in results if ranked.failure]
    if failed and not any(ranked.measurement for ranked in results):
        if measuring.refusals:
            raise InputError(measuring.refusals[0])
        raise ClusterError(
            f"all {len(failed)} plans that were tried failed; "
            f"{failed[0].configuration}: {failed[0].failure}"
        )
    return corrected(results), measuring.ended


def _open_study(task: Task, journal: Path | None) -> optuna.Study:
    """The task's study, in the journal file if there is one, else in memory.

    A process that was killed while it wrote leaves half a line and a lock behind: the line is cut
    off, since what it said was never acted on, and the lock is taken over after some seconds.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = None
    if journal is not None:
        mend_journal(journal)
    with refusing_strange_journals(journal):
        if journal is not None:
            lock = JournalFileOpenLock(str(journal), grace_period=LOCK_GRACE_S)
            storage = JournalStorage(JournalFileBackend(str(journal), lock_obj=lock))
        study = optuna.create_study(
            storage=storage, study_name=study_name(task), direction="minimize", load_if_exists=True
        )
        for trial in study.get_trials(deepcopy=False):
            check_trial(trial.user_attrs, trial.intermediate_values)
    return study


class _Measuring:
    """One go at measuring candidates: the study's trials by candidate, run batch after batch in
    interleaved rounds.
    """

    def __init__(
        self, task: Task, study: optuna.Study, trials: MeasurementPolicy, say: Callable[[str], None]
    ) -> None:
        self.task, self.study, self.trials, self.say = task, study, trials, say
        self.ended, self.refusals = "", list[str]()
        self.failures: dict[str, str] = {}
        self.running: dict[str, Trial] = {}
        self.plans: dict[str, ExecutionPlan] = {}
        self.started = time.monotonic()

    def run(self, fitting: Sequence[PricedCandidate]) -> list[PricedCandidate]:
        """Measures what is worth it and isn't in the study; returns all with what came out.

        A trial that was begun in an earlier go is finished first.
        """
        names = {ranked.configuration.key: ranked for ranked in fitting}
        self.running = {
            str(frozen.user_attrs.get("candidate")): Trial(self.study, frozen._trial_id)
            for frozen in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            if frozen.user_attrs.get("candidate") in names
        }
        begun = [names[key] for key in self.running]
        results = self._results(fitting)
        for ranked in results:
            if ranked.measurement and ranked.configuration.key not in self.running:
                self.say(f"{ranked.configuration}: measured before")
        waiting = [r for r in untried(results, self.trials.top) if r not in begun]
        batch = [*begun, *waiting] or self._next(results)
        while batch and self._run_rounds({r.configuration.key: r for r in batch}):
            results = self._results(fitting)
            batch = self._next(results)
        self._finish(self.running)
        return self._results(fitting)

    def _next(self, results: list[PricedCandidate]) -> list[PricedCandidate]:
        """The next batch; empty when no more are to be tried or none is worth it."""
        if waiting := untried(results, self.trials.top):
            return waiting
        left = trials_left(results, self.trials.top)
        known = sum(ranked.measurement is not None for ranked in results)
        if left <= 0 or not known:
            return []
        objective = self.task.objective
        if objective != FASTEST:
            batch = next_by_objective(results, left, objective, self.task.workload.batch)
            self.ended = "" if batch else "no unmeasured plan should serve the objective better"
            return batch
        if most_to_gain(results) <= TOLERANCE:
            self.ended = f"no unmeasured plan can be more than {TOLERANCE:.0%} faster"
            self.say(f"{self.ended}, by {known} measured ones; stopped {left} before the end")
            return []
        batch = next_batch(results, left)
        names = "; ".join(str(ranked.configuration) for ranked in batch)
        self.say(f"predictions corrected by {known} measured plans; to be tried next: {names}")
        return batch

    def _results(self, fitting: Sequence[PricedCandidate]) -> list[PricedCandidate]:
        """All candidates with what the study has of them, and what failed in this go."""
        known = {
            str(trial.user_attrs.get("candidate")): trial
            for trial in self.study.get_trials(deepcopy=False)
            if trial.intermediate_values and trial.state != TrialState.FAIL
        }
        results = list(fitting)
        for row, ranked in enumerate(fitting):
            key = ranked.configuration.key
            if failure := self.failures.get(key):
                results[row] = replace(ranked, failure=failure)
            elif trial := known.get(key):
                results[row] = replace(ranked, measurement=self._measurement(trial, ranked))
        return results

    def _open_trials(self, wanted: Mapping[str, PricedCandidate]) -> int:
        """Sees to it that each has a running trial; returns the round in which they start."""
        starts = [t.user_attrs.get("start", 0) for k, t in self.running.items() if k in wanted]
        reported = [n for t in self.study.get_trials(deepcopy=False) for n in t.intermediate_values]
        start = max(starts) if starts else max(reported, default=-1) + 1
        waiting = {
            trial.user_attrs.get("candidate")
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        }
        for key, ranked in wanted.items():
            if key not in self.running and key not in waiting:
                attrs = {"candidate": key, "control": ranked.control, "start": start}
                parameters = parameters_of(ranked.configuration, self.task.backend.axes)
                self.study.enqueue_trial(parameters, user_attrs=attrs)
        while wanted.keys() - self.running.keys():
            trial = self.study.ask()
            key = str(trial.user_attrs.get("candidate"))
            if key in wanted and key not in self.running:
                trial.set_user_attr("start", start)
                self.running[key] = trial
            else:
                trial.set_user_attr("reason", "no longer among the candidates to measure")
                self.study.tell(trial, state=TrialState.PRUNED)
        for key, ranked in wanted.items():
            self._suggest(self.running[key], ranked.configuration)
        return start

    def _suggest(self, trial: Trial, candidate: Configuration) -> None:
        """Records the candidate as the trial's parameters, with the same distributions for all."""
        ranks = len(self.task.cluster.devices)
        for axis in self.task.backend.axes:
            trial.suggest_int(axis, 1, max(2, ranks))
        full = Mesh(**dict.fromkeys(self.task.backend.axes, 2))
        trial.suggest_categorical("order", [">".join(order) for order in axis_orders(full)])
        trial.suggest_categorical("mode", list(self.task.backend.modes))
        for name in patching_of(candidate):
            trial.suggest_int(name, 1, MOST_PATCHES)
        trial.set_user_attr("mesh", str(candidate))

    def _run_rounds(self, wanted: Mapping[str, PricedCandidate]) -> bool:
        """Runs each candidate once a round, in turn, so that a clock that drifts touches all alike,
        and the fastest one so far beside them.

        Returns whether there was time for all of it. The fastest one's trial stays open.
        """
        start = self._open_trials(wanted)
        self.plans |= {key: self._plan(ranked) for key, ranked in wanted.items()}
        running, number = [*wanted, *(self._leader() - wanted.keys())], start
        while number < start + self.trials.rounds or self._is_close(running, start, number):
            for key in list(running):
                if number in self._runs()[key]:
                    continue
                if self._budget_is_spent() and any(self._runs().values()):
                    self.say(f"budget of {self.trials.budget_s:g} s is spent")
                    return False
                if not self._run_once(key, number):
                    running.remove(key)
            for key, behind in self._behind(running, start).items():
                # a slower one may serve another objective better
                if behind.is_clear and self.task.objective == FASTEST:
                    running.remove(key)
                    self._prune(key, behind)
            number += 1
        leader = self._leader()
        self._finish(key for key in self.running if key not in leader)
        return True

    def _runs(self) -> dict[str, dict[int, float]]:
        """Seconds by round of all candidates in the study that didn't fail."""
        return {
            str(trial.user_attrs.get("candidate")): dict(trial.intermediate_values)
            for trial in self.study.get_trials(deepcopy=False)
            if trial.state != TrialState.FAIL
        }

    def _leader(self) -> set[str]:
        """The fastest one of all, if its trial is still open."""
        runs = {key: found for key, found in self._runs().items() if found}
        return ({leader_of(runs)} if runs else set()) & self.running.keys()

    def _behind(self, running: Sequence[str], start: int) -> dict[str, Behind]:
        """How far those that run are behind their leader, by the rounds from `start` on."""
        runs = self._runs()
        recent = {key: {n: s for n, s in runs[key].items() if n >= start} for key in running}
        return behind_leader({key: found for key, found in recent.items() if found})

    def _is_close(self, running: Sequence[str], start: int, number: int) -> bool:
        """Whether more rounds could show another one to be faster by more than the tolerance."""
        behind = self._behind(running, start).values()
        can_change = any(one.may_be_ahead_by(TOLERANCE) for one in behind)
        return can_change and number < start + MOST_ROUNDS

    def _run_once(self, key: str, number: int) -> bool:
        """Whether a run of a candidate succeeded."""
        trial, plan = self.running[key], self.plans[key]
        try:
            run = self.trials.measure(plan)
        except DitplanError as error:
            self._fail(key, error)
            return False
        trial.report(run.latency_s, number)
        if run.memory_bytes is not None:
            known = trial.user_attrs.get("memory_bytes", 0)
            trial.set_user_attr("memory_bytes", max(known, run.memory_bytes))
        done = len(self._runs()[key])
        self.say(f"{trial.user_attrs['mesh']}, run {done}: {run.latency_s:.4g} s")
        return True

    def _prune(self, key: str, behind: Behind) -> None:
        """Ends a trial that is clearly slower, if it lacks runs; its measurements stay."""
        runs = len(self._runs()[key])
        if runs >= self.trials.rounds:
            return
        trial, slower = self.running.pop(key), math.expm1(behind.mean)
        reason = f"{slower:.0%} slower than the fastest after {runs} runs"
        trial.set_user_attr("reason", reason)
        self.study.tell(trial, state=TrialState.PRUNED)
        self.say(f"{trial.user_attrs['mesh']}: not run any more: {reason}")

    def _plan(self, ranked: PricedCandidate) -> ExecutionPlan:
        t = self.task
        # what fell back would be timed as something that it isn't
        unreplaced = replace(ranked, fallback="refuse")
        return build_plan(unreplaced, t.spec, t.workload, t.cluster, t.backend)

    def _budget_is_spent(self) -> bool:
        budget_s = self.trials.budget_s
        return budget_s is not None and time.monotonic() - self.started >= budget_s

    def _fail(self, key: str, error: DitplanError) -> None:
        trial, whole = self.running.pop(key), str(error) or type(error).__name__
        trial.set_user_attr("reason", whole)
        self.study.tell(trial, state=TrialState.FAIL)
        self.say(f"{trial.user_attrs['mesh']}: failed: {whole}")
        if isinstance(error, InputError):
            self.refusals.append(whole)
        self.failures[key] = cause_in(whole)

    def _finish(self, keys: Iterable[str]) -> None:
        """Tells the medians; a trial without any run stays open for a later search."""
        for key in list(keys):
            if runs := self._runs()[key]:
                self.study.tell(self.running.pop(key), statistics.median(runs.values()))

    def _measurement(self, trial: FrozenTrial, ranked: PricedCandidate) -> Measurement:
        memory_bytes = trial.user_attrs.get("memory_bytes")
        devices = self.task.cluster.devices[: ranked.configuration.mesh.size]
        return measurement_of(
            trial.intermediate_values, memory_bytes, trial.datetime_complete, devices
        )
