"""Finds the best plan: prices every candidate, and really runs the most promising ones as an
Optuna study.
"""

import hashlib
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, Trial, TrialState

from ditplan.planner.pricing import Task, price_all
from ditplan.planner.ranking import Ranked, Ranking, build_plan, fingerprint_of, in_order
from ditplan.planner.space import Candidate, axis_orders
from ditplan.planner.topology import Topology
from ditplan.profiles.errors import ClusterError, DitplanError, InputError
from ditplan.profiles.mesh import AXES, Mesh
from ditplan.profiles.plan import ExecutionPlan, Measurement

LOCK_GRACE_S = 5
MODES_OF_A_MESH = 2
"""Of the modes of one mesh only the first ones are run: they differ by what was measured already,
the exchanges of other meshes by what wasn't."""


MOST_PATCHES = 2**20
"""What a study allows for patches and warm-up steps: more than anybody asks for."""


@dataclass(frozen=True)
class Trialrun:
    """One real run of a plan's denoising loop."""

    latency_s: float
    memory_bytes: int | None = None


@dataclass(frozen=True)
class Trials:
    """How to measure: the `top` predicted candidates and the control, `rounds` runs of each, one of
    each in turn.

    `budget_s` ends it: nothing new is started then, once one candidate was run. `journal` is the
    file of the Optuna study; a search that finds its own study in there goes on with it.
    """

    measure: Callable[[ExecutionPlan], Trialrun]
    top: int = 3
    rounds: int = 3
    budget_s: float | None = None
    journal: Path | None = None


def search(
    task: Task, trials: Trials | None = None, progress: Callable[[str], None] | None = None
) -> Ranking:
    """Ranks all candidates by predicted latency and, with `trials`, the first ones by measured
    latency.

    Raises:
        InputError: no mesh is legal with these pins, none fits into memory, or the cluster profile
            lacks something. ClusterError: every candidate that was tried failed.
    """
    started = time.monotonic()
    say = progress or (lambda message: None)
    topology = Topology(task.cluster)
    priced, pruned = price_all(task, topology)
    fitting = [ranked for ranked in priced if not ranked.too_big]
    too_big = [ranked for ranked in priced if ranked.too_big]
    say(f"priced {len(priced)} candidates, {len(fitting)} fit")
    swapping = [ranked for ranked in fitting if ranked.warning]
    if swapping:
        say(
            f"warning: {len(swapping)} of them need more memory than there is; "
            f"{swapping[0].candidate}: {swapping[0].warning}"
        )
    if trials and trials.top > 0:
        fitting = _measured(task, fitting, trials, say)
    return Ranking(
        ranked=in_order([*fitting, *too_big], topology),
        legal=len(fitting),
        pruned=pruned,
        search_s=time.monotonic() - started,
        spec=task.spec,
        workload=task.workload,
        cluster=task.cluster,
        backend=task.backend,
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


def key_of(candidate: Candidate) -> str:
    """The name of a candidate inside its study."""
    degrees = " ".join(
        f"{axis}{degree}" for axis, degree in zip(AXES, candidate.mesh.degrees, strict=True)
    )
    key = f"{degrees} {'>'.join(candidate.order)} {candidate.mode}"
    part = candidate.pipefusion
    if part is None:
        return key
    stages = "+".join(map(str, part.blocks_per_stage))
    return f"{key} patches{part.patches} warmup{part.warmup_steps} stages{stages}"


def _patching(candidate: Candidate) -> dict[str, int]:
    """PipeFusion's settings as parameters of a trial."""
    part = candidate.pipefusion
    return {"patches": part.patches, "warmup": part.warmup_steps} if part else {}


def _chosen(fitting: Sequence[Ranked], top: int) -> list[Ranked]:
    """The first one, the control, then the other ones of the top: a short budget compares with
    the control.
    """
    places: Counter[tuple[object, ...]] = Counter()
    chosen = []
    for ranked in fitting:
        place = (ranked.candidate.mesh, ranked.candidate.placement)
        places[place] += 1
        if places[place] <= MODES_OF_A_MESH:
            chosen.append(ranked)
    first, *others = chosen[:top]
    control = [ranked for ranked in fitting if ranked.control and ranked is not first]
    return [first, *control, *(ranked for ranked in others if not ranked.control)]


def _measured(
    task: Task, fitting: list[Ranked], trials: Trials, say: Callable[[str], None]
) -> list[Ranked]:
    """The candidates, the chosen ones with their measurement or failure.

    Raises:
        InputError: all of them failed, one or more for something that the user gave.
        ClusterError: all of them failed for other reasons.
    """
    chosen = _chosen(fitting, trials.top)
    study = _open_study(task, trials.journal)
    measuring = _Measuring(task, study, trials, say)
    outcomes = measuring.run(chosen)
    results = [outcomes.get(key_of(ranked.candidate), ranked) for ranked in fitting]
    failed = [ranked for ranked in results if ranked.failure]
    if failed and not any(ranked.measurement for ranked in results):
        if measuring.refusals:
            raise InputError(measuring.refusals[0])
        raise ClusterError(
            f"all {len(failed)} plans that were tried failed; "
            f"{failed[0].candidate}: {failed[0].failure}"
        )
    return results


def _open_study(task: Task, journal: Path | None) -> optuna.Study:
    """The task's study, in the journal file if there is one, else in memory.

    A process that was killed while it wrote leaves half a line and a lock behind: the line is cut
    off, since what it said was never acted on, and the lock is taken over after some seconds.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = None
    if journal is not None:
        _cut_torn_line(journal)
        lock = JournalFileOpenLock(str(journal), grace_period=LOCK_GRACE_S)
        storage = JournalStorage(JournalFileBackend(str(journal), lock_obj=lock))
    return optuna.create_study(
        storage=storage, study_name=study_name(task), direction="minimize", load_if_exists=True
    )


def _cut_torn_line(journal: Path) -> None:
    if not journal.parent.is_dir():
        raise InputError(f"{journal}: the folder {journal.parent} doesn't exist; make it first")
    if not journal.exists():
        return
    content = journal.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with journal.open("r+b") as file:
            file.truncate(whole)


class _Measuring:
    """One go at measuring candidates: the study's trials by candidate, run in interleaved
    rounds.
    """

    def __init__(
        self, task: Task, study: optuna.Study, trials: Trials, say: Callable[[str], None]
    ) -> None:
        self.task, self.study, self.trials, self.say = task, study, trials, say
        self.refusals: list[str] = []
        self.started = time.monotonic()

    def run(self, chosen: Sequence[Ranked]) -> dict[str, Ranked]:
        """Measures each of the chosen that the study hasn't.

        Returns them by key, with what came out.
        """
        complete = {
            trial.user_attrs.get("candidate"): trial
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        }
        keys = {key_of(ranked.candidate): ranked for ranked in chosen}
        outcomes = {
            key: replace(ranked, measurement=self._measurement(complete[key], ranked))
            for key, ranked in keys.items()
            if key in complete
        }
        for key in outcomes:
            self.say(f"{keys[key].candidate}: measured before")
        wanted = {key: ranked for key, ranked in keys.items() if key not in outcomes}
        open_trials = self._trials_of(wanted)
        failures = self._run_rounds(wanted, open_trials)
        for key, ranked in wanted.items():
            if key in failures:
                outcomes[key] = replace(ranked, failure=failures[key])
            elif finished := self._finish(open_trials[key]):
                outcomes[key] = replace(ranked, measurement=self._measurement(finished, ranked))
        return outcomes

    def _trials_of(self, wanted: Mapping[str, Ranked]) -> dict[str, Trial]:
        """A running trial for each: one that a killed process left, or a new one."""
        running: dict[str, Trial] = {}
        for frozen in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            key = str(frozen.user_attrs.get("candidate"))
            if key in wanted and key not in running:
                running[key] = Trial(self.study, frozen._trial_id)
        waiting = {
            trial.user_attrs.get("candidate")
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        }
        for key, ranked in wanted.items():
            if key not in running and key not in waiting:
                attrs = {"candidate": key, "control": ranked.control}
                self.study.enqueue_trial(self._params(ranked.candidate), user_attrs=attrs)
        while missing := wanted.keys() - running.keys():
            trial = self.study.ask()
            key = str(trial.user_attrs.get("candidate"))
            if key in missing:
                running[key] = trial
            else:
                trial.set_user_attr("reason", "no longer among the candidates to measure")
                self.study.tell(trial, state=TrialState.PRUNED)
        for key, trial in running.items():
            self._suggest(trial, wanted[key].candidate)
        return running

    def _params(self, candidate: Candidate) -> dict[str, object]:
        degrees = {axis: getattr(candidate.mesh, axis) for axis in self.task.backend.axes}
        settings = {"order": ">".join(candidate.order), "mode": candidate.mode}
        return {**degrees, **settings, **_patching(candidate)}

    def _suggest(self, trial: Trial, candidate: Candidate) -> None:
        """Records the candidate as the trial's parameters, the same distributions for each
        trial.
        """
        ranks = len(self.task.cluster.devices)
        for axis in self.task.backend.axes:
            trial.suggest_int(axis, 1, max(2, ranks))
        full = Mesh(**dict.fromkeys(self.task.backend.axes, 2))
        trial.suggest_categorical("order", [">".join(order) for order in axis_orders(full)])
        trial.suggest_categorical("mode", list(self.task.backend.modes))
        for name in _patching(candidate):
            trial.suggest_int(name, 1, MOST_PATCHES)
        trial.set_user_attr("mesh", str(candidate))

    def _run_rounds(
        self, wanted: Mapping[str, Ranked], open_trials: Mapping[str, Trial]
    ) -> dict[str, str]:
        """Runs each candidate once a round, in turn, so that a clock that drifts touches all
        alike.
        """
        failures: dict[str, str] = {}
        plans = {key: self._plan(ranked) for key, ranked in wanted.items()}
        reported = {key: set(self._values(trial)) for key, trial in open_trials.items()}
        for number in range(self.trials.rounds):
            for key, plan in plans.items():
                if key in failures or number in reported[key]:
                    continue
                if self._budget_is_spent() and any(reported.values()):
                    self.say(f"budget of {self.trials.budget_s:g} s is spent")
                    return failures
                try:
                    run = self.trials.measure(plan)
                except DitplanError as error:
                    failures[key] = self._fail(open_trials[key], error)
                    continue
                open_trials[key].report(run.latency_s, number)
                reported[key].add(number)
                self._note_memory(open_trials[key], run)
                self.say(f"{wanted[key].candidate}, run {number + 1}: {run.latency_s:.4g} s")
        return failures

    def _plan(self, ranked: Ranked) -> ExecutionPlan:
        t = self.task
        # what fell back would be timed as something that it isn't
        strict = ranked.execution.model_copy(update={"fallback": "refuse"})
        measured = replace(ranked, execution=strict)
        return build_plan(measured, t.spec, t.workload, t.cluster, t.backend)

    def _budget_is_spent(self) -> bool:
        budget_s = self.trials.budget_s
        return budget_s is not None and time.monotonic() - self.started >= budget_s

    def _fail(self, trial: Trial, error: DitplanError) -> str:
        whole = str(error) or type(error).__name__
        trial.set_user_attr("reason", whole)
        self.study.tell(trial, state=TrialState.FAIL)
        self.say(f"{trial.user_attrs['mesh']}: failed: {whole}")
        if isinstance(error, InputError):
            self.refusals.append(whole)
        return whole.splitlines()[0]

    def _note_memory(self, trial: Trial, run: Trialrun) -> None:
        if run.memory_bytes is not None:
            known = trial.user_attrs.get("memory_bytes", 0)
            trial.set_user_attr("memory_bytes", max(known, run.memory_bytes))

    def _values(self, trial: Trial) -> dict[int, float]:
        """The trial's reported latencies by round."""
        frozen = next(t for t in self.study.get_trials(deepcopy=False) if t.number == trial.number)
        return dict(frozen.intermediate_values)

    def _finish(self, trial: Trial) -> FrozenTrial | None:
        """Tells the median; a trial without any run stays open for a later search."""
        values = self._values(trial)
        if not values:
            return None
        return self.study.tell(trial, statistics.median(values.values()))

    def _measurement(self, trial: FrozenTrial, ranked: Ranked) -> Measurement:
        runs_s = tuple(trial.intermediate_values[i] for i in sorted(trial.intermediate_values))
        size = ranked.candidate.mesh.size
        names = [device.name for device in self.task.cluster.devices[:size]]
        devices = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
        when = (trial.datetime_complete or datetime.now()).astimezone(UTC)
        return Measurement(
            latency_s=statistics.median(runs_s),
            runs_s=runs_s,
            memory_bytes=trial.user_attrs.get("memory_bytes"),
            measured_on=when.isoformat(timespec="seconds"),
            devices=devices,
        )
