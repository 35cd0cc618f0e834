"""Who chooses what is run: the planner as a sampler, Optuna's samplers over the same space, and
what the journal keeps of all that.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import optuna
import pytest
from optuna.distributions import BaseDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from ditplan.planner.network.topology import Topology
from ditplan.planner.search.ask_tell import FRUITLESS_ASKS, AskTell
from ditplan.planner.search.parameters import ParameterSpace
from ditplan.planner.search.policy import MeasurementPolicy, RunResult
from ditplan.planner.search.pricing import price_all
from ditplan.planner.search.racing import RacingPruner
from ditplan.planner.search.ranking import PricedCandidate
from ditplan.planner.search.sampler import PlannerSampler, optuna_sampler
from ditplan.planner.search.sampler_names import SamplerName
from ditplan.planner.search.search import search
from ditplan.planner.search.storage import open_trials, study_name
from ditplan.planner.space.approximations import STEP_CACHES, ApproximationPolicy
from ditplan.planner.task import Task
from ditplan.profiles.catalog import cluster_names, find_cluster
from ditplan.profiles.errors import InputError
from ditplan.profiles.plan import ExecutionPlan
from tests.unit.planner_factories import WORKLOAD, a_cluster, sd3_like

TASK = Task(
    sd3_like(),
    WORKLOAD,
    a_cluster(devices=4),
    modes=("eager", "compile"),
    allowed=ApproximationPolicy(),
)
SMALL = replace(TASK, cluster=a_cluster(devices=2), modes=("eager",))
OTHERS: tuple[SamplerName, ...] = tuple(sorted(set(get_args(SamplerName)) - {"planner"}))


def latency(plan: ExecutionPlan) -> RunResult:
    """Fewer rings are faster."""
    return RunResult(1.0 / plan.mesh.size + 0.1 * plan.mesh.ring, memory_bytes=1000)


def priced(task: Task) -> list[PricedCandidate]:
    """What fits, fastest first."""
    found, _ = price_all(task, Topology(task.cluster))
    return [ranked for ranked in found if not ranked.too_big]


def trials_in(journal: Path, task: Task, sampler: SamplerName) -> list[FrozenTrial]:
    """The trials of the journal's study, read as another program would."""
    storage = JournalStorage(JournalFileBackend(str(journal)))
    return optuna.load_study(study_name=study_name(task, sampler), storage=storage).trials


def is_elsewhere(one: PricedCandidate, ranked: PricedCandidate) -> bool:
    """Whether a plan differs in its ranks from one that is no faster."""
    ours, theirs = one.configuration, ranked.configuration
    is_same = (ours.mesh, ours.mode) == (theirs.mesh, theirs.mode) and ours.ranks != theirs.ranks
    return is_same and one.prediction.latency_s <= ranked.prediction.latency_s


@pytest.mark.parametrize("name", cluster_names())
def test_parameters_stand_for_one_candidate_and_back(name: str) -> None:
    cluster = find_cluster(name)
    task = replace(TASK, cluster=cluster, gpus=min(8, len(cluster.devices)))
    everywhere = priced(task)
    space = ParameterSpace(task, everywhere)
    # of those on other ranks the fastest one counts
    fastest: dict[str, PricedCandidate] = {}
    for ranked in everywhere:
        parameters = space.parameters(ranked.configuration)
        fastest.setdefault(str(sorted(parameters.items())), ranked)
    found = list(fastest.values())
    asked = [space.parameters(ranked.configuration) for ranked in found]
    left_out = [ranked for ranked in everywhere if ranked not in found]
    assert all(any(is_elsewhere(one, ranked) for one in found) for ranked in left_out)
    for ranked, parameters in zip(found, asked, strict=True):
        assert space.find(parameters) is ranked
        for name_, value in parameters.items():
            distribution = space.distributions[name_]
            internal = distribution.to_internal_repr(value)
            assert distribution.to_external_repr(internal) == value


def test_what_was_not_priced_is_found_with_the_same_price() -> None:
    known, nothing = priced(TASK), ParameterSpace(TASK, [])
    for ranked in known:
        again = nothing.find(nothing.parameters(ranked.configuration))
        assert isinstance(again, PricedCandidate)
        assert replace(again, is_baseline=ranked.is_baseline) == ranked


def test_step_caches_are_parameters_where_they_are_allowed() -> None:
    assert "step_cache" not in ParameterSpace(TASK, []).distributions
    any_quality = Task(
        sd3_like(),
        WORKLOAD,
        a_cluster(devices=2),
        modes=("eager",),
        allowed=ApproximationPolicy(step_caches=STEP_CACHES),
    )
    found = priced(any_quality)
    nothing = ParameterSpace(any_quality, [])
    cached = [ranked for ranked in found if ranked.configuration.step_cache]
    assert cached
    for ranked in cached:
        assert nothing.find(nothing.parameters(ranked.configuration)) == ranked


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ring": 4, "ulysses": 4}, "needs 16 GPUs, there are 4"),
        ({"pipefusion": 2, "patches": 3, "warmup": 1, "ring": 1}, None),
        ({"pipefusion": 2, "patches": 99, "warmup": 1}, "99 patches: pipefusion2 is tried with 2"),
        ({"cfg": 3}, "cfg is 3, but sd3-like has 2 passes"),
    ],
)
def test_parameters_that_are_no_configuration_say_why(
    change: dict[str, object], words: str | None
) -> None:
    space = ParameterSpace(TASK, [])
    one = {"dp": 1, "cfg": 1, "pipefusion": 1, "ring": 1, "ulysses": 1, "mode": "eager"}
    one |= {"order": "dp>cfg>pipefusion>ring>ulysses"}
    found = space.find(one | change)
    if words is None:
        assert isinstance(found, PricedCandidate)
    else:
        assert words in str(found)


def test_the_planner_is_a_sampler_of_any_study() -> None:
    found = priced(TASK)
    space = ParameterSpace(TASK, found)
    sampler = PlannerSampler(space, lambda study: found, top=3)
    study = optuna.create_study(sampler=sampler)

    def objective(trial: Trial) -> float:
        ranked = space.find(space.suggest(trial))
        assert isinstance(ranked, PricedCandidate)
        return ranked.prediction.latency_s

    study.optimize(objective, n_trials=3)
    assert study.trials[0].params == space.parameters(found[0].configuration)
    assert any(
        trial.params == space.parameters(ranked.configuration)
        for trial in study.trials
        for ranked in found
        if ranked.is_baseline
    )


def test_the_planner_stops_a_study_when_nothing_is_left() -> None:
    found = priced(TASK)
    space = ParameterSpace(TASK, found)
    done = [replace(ranked, failure="no") for ranked in found]
    study = optuna.create_study(sampler=PlannerSampler(space, lambda study: done, top=3))
    study.optimize(lambda trial: float(len(space.suggest(trial))), n_trials=5)
    assert len(study.trials) == 1


def test_racing_prunes_what_is_clearly_slower_by_the_rounds_of_its_batch() -> None:
    study = optuna.create_study(pruner=RacingPruner())
    leader, slow, near = (study.ask() for _ in range(3))
    for trial, start in ((leader, 0), (slow, 2), (near, 0)):
        trial.set_user_attr("start", start)
    for number, seconds in enumerate([9.0, 9.0, 1.0, 1.001]):
        leader.report(seconds, number)
    for number, seconds in enumerate([0.1, 50.0]):
        # what varied then would hide who is slower now
        near.report(seconds, number)
    assert not any(trial.should_prune() for trial in (leader, slow, near))
    for number, (slow_s, near_s) in enumerate([(1.5, 1.002), (1.51, 0.999)], start=2):
        slow.report(slow_s, number)
        near.report(near_s, number)
    assert [trial.should_prune() for trial in (leader, slow, near)] == [False, True, False]


@pytest.mark.parametrize("sampler", OTHERS)
def test_another_sampler_runs_plans_of_the_same_space(sampler: SamplerName, tmp_path: Path) -> None:
    journal, ran = tmp_path / "study.log", list[str]()

    def measure(plan: ExecutionPlan) -> RunResult:
        ran.append(plan.configuration.key)
        return latency(plan)

    policy = MeasurementPolicy(measure, top=6, rounds=2, journal=journal, sampler=sampler)
    found = search(TASK, policy)
    tried = {r.configuration.key for r in found.ranked if r.measurement}
    assert tried == set(ran)
    assert len(tried) == 7, "six and the baseline"
    assert next(r for r in found.ranked if r.is_baseline).measurement
    assert found.best.measurement
    assert found.best.measurement.latency_s == min(
        r.measurement.latency_s for r in found.ranked if r.measurement
    )
    trials = trials_in(journal, TASK, sampler)
    assert not [trial for trial in trials if trial.state == TrialState.RUNNING]
    distributions: dict[str, BaseDistribution] = {}
    for trial in trials:
        for name, distribution in trial.distributions.items():
            assert distributions.setdefault(name, distribution) == distribution
        if "candidate" not in trial.user_attrs:
            assert trial.user_attrs["reason"].startswith(("not legal: ", "the same as "))
            assert not trial.intermediate_values
        elif trial.state == TrialState.PRUNED:
            assert "slower than the fastest" in trial.user_attrs["reason"]
    assert any("needs" in trial.user_attrs.get("reason", "") for trial in trials)


def test_brute_force_ends_when_it_has_asked_for_everything(tmp_path: Path) -> None:
    journal, said = tmp_path / "study.log", list[str]()
    legal = {ranked.configuration.key for ranked in priced(SMALL)}
    policy = MeasurementPolicy(latency, top=1000, rounds=1, journal=journal, sampler="brute-force")
    found = search(SMALL, policy, said.append)
    assert {r.configuration.key for r in found.ranked if r.measurement} == legal
    assert found.ended == "it has asked for all there is"
    assert any("brute-force: it has asked for all" in message for message in said)
    asked = [tuple(trial.params.items()) for trial in trials_in(journal, SMALL, "brute-force")]
    assert len(set(asked)) == len(asked)


def test_a_sampler_without_new_legal_plans_ends(tmp_path: Path) -> None:
    policy = MeasurementPolicy(latency, top=1000, rounds=1, sampler="random")
    found = search(replace(SMALL, gpus=1, allowed=None), policy)
    assert found.ended == f"no other legal plan in {FRUITLESS_ASKS} asks"


def test_what_another_sampler_ran_is_not_run_again(tmp_path: Path) -> None:
    journal, ran = tmp_path / "study.log", list[str]()

    def measure(plan: ExecutionPlan) -> RunResult:
        ran.append(plan.configuration.key)
        return latency(plan)

    policy = MeasurementPolicy(measure, top=3, rounds=1, journal=journal, sampler="random")
    before = search(TASK, policy)
    first = set(ran)
    ran.clear()
    again = search(TASK, policy)
    assert ran == []
    assert again.best.measurement == before.best.measurement
    search(TASK, replace(policy, top=5))
    assert len(set(ran) - first) == 2


def test_samplers_have_studies_of_their_own() -> None:
    names = {study_name(TASK, sampler) for sampler in get_args(SamplerName)}
    assert len(names) == len(get_args(SamplerName))
    assert study_name(TASK) == study_name(TASK, "planner")


def test_a_trial_left_open_keeps_its_rounds_and_goes_on() -> None:
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage, study_name="other")
    study.ask()
    study = optuna.create_study(storage=storage, study_name="killed")
    study.tell(study.ask(), 1.0)
    study.ask().report(2.0, 0)
    (trial,) = open_trials(study, storage)
    trial.report(3.0, 1)
    study.tell(trial, 2.5)
    assert study.trials[1].intermediate_values == {0: 2.0, 1: 3.0}
    assert study.trials[1].value == 2.5


def test_a_sampler_s_open_trial_is_finished_first(tmp_path: Path) -> None:
    journal = tmp_path / "study.log"

    def killed(after: int) -> Callable[[ExecutionPlan], RunResult]:
        left = iter(range(after))

        def measure(plan: ExecutionPlan) -> RunResult:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return latency(plan)

        return measure

    policy = MeasurementPolicy(killed(6), top=3, rounds=2, journal=journal, sampler="tpe")
    with pytest.raises(KeyboardInterrupt):
        search(TASK, policy)
    begun = [t for t in trials_in(journal, TASK, "tpe") if "candidate" in t.user_attrs]
    assert {t.state for t in begun} == {TrialState.RUNNING}
    study = AskTell(TASK, priced(TASK), replace(policy, measure=latency), lambda message: None)
    study.run()
    ended = {t.number: t for t in trials_in(journal, TASK, "tpe")}
    for trial in begun:
        assert ended[trial.number].state in (TrialState.COMPLETE, TrialState.PRUNED)
        assert trial.intermediate_values.items() <= ended[trial.number].intermediate_values.items()
    assert len([t for t in ended.values() if "candidate" in t.user_attrs]) == 4


def test_gp_without_torch_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torch" else found(name)
    )
    with pytest.raises(InputError, match=r"sampler.*need torch, not installed here; install it"):
        optuna_sampler("gp", 0)
