"""Tuning again from a plan runs it, and beside it only what could now be faster."""

import math
from collections import Counter
from pathlib import Path

import pytest

import ditplan
from ditplan.planner.search.policy import MeasurementPolicy, RunResult
from ditplan.planner.search.search import search
from ditplan.planner.task import Task
from ditplan.profiles.errors import ClusterError, InputError
from ditplan.profiles.plan import ExecutionPlan
from tests.unit.factories import a_plan
from tests.unit.planner_factories import WORKLOAD, a_cluster, sd3_like

TASK = Task(sd3_like(), WORKLOAD, a_cluster(devices=4), modes=("eager",))
MANY = 50


class Machine:
    """Stands for the hardware: takes what is predicted, times a factor for some configurations."""

    def __init__(self, usual: float = 1.0, **times: float) -> None:
        self.usual, self.times = usual, times
        self.ran: Counter[str] = Counter()

    def __call__(self, plan: ExecutionPlan) -> RunResult:
        """Fails where the factor is infinite."""
        key = plan.configuration.key
        self.ran[key] += 1
        times = self.times.get(key, self.usual)
        if math.isinf(times):
            raise ClusterError("a rank was lost")
        assert plan.prediction is not None
        return RunResult(times * plan.prediction.latency_s, memory_bytes=1000)


@pytest.fixture(scope="module")
def tuned() -> ExecutionPlan:
    """A plan beside which nothing else can be faster, as far as is known."""
    return search(TASK, MeasurementPolicy(Machine(), top=MANY)).to_plan()


def resumed(plan: ExecutionPlan, machine: Machine, journal: Path | None = None) -> ExecutionPlan:
    """What comes of tuning again."""
    policy = MeasurementPolicy(machine, top=MANY, resume=plan, journal=journal)
    return search(TASK, policy).to_plan()


def measured_ups(plan: ExecutionPlan) -> list[tuple[float, str]]:
    """The runner-ups that were run, fastest first."""
    ups = [(one.measured_s, one.configuration.key) for one in plan.runner_ups]
    return sorted((seconds, key) for seconds, key in ups if seconds is not None)


def test_where_nothing_has_changed_the_plan_alone_is_run(tuned: ExecutionPlan) -> None:
    machine = Machine()
    again = resumed(tuned, machine)
    assert set(machine.ran) == {tuned.configuration.key}
    assert again.configuration == tuned.configuration
    assert again.measurement is not None


def test_where_the_plan_has_become_slower_what_could_now_win_is_run(tuned: ExecutionPlan) -> None:
    (second_s, second), *_ = measured_ups(tuned)
    assert tuned.measurement is not None
    times = 1.2 * second_s / tuned.measurement.latency_s
    machine = Machine(**{tuned.configuration.key: times})
    again = resumed(tuned, machine)
    assert again.configuration.key == second
    slow = {key for seconds, key in measured_ups(tuned) if seconds > 1.2 * second_s}
    assert slow
    assert not slow & set(machine.ran)


def test_where_all_has_become_slower_few_are_run(tuned: ExecutionPlan) -> None:
    machine = Machine(usual=2.0)
    again = resumed(tuned, machine)
    assert again.configuration == tuned.configuration
    assert 1 < len(machine.ran) <= 3 < len(measured_ups(tuned))


def test_a_plan_that_cannot_run_any_more_is_replaced(tuned: ExecutionPlan) -> None:
    machine = Machine(**{tuned.configuration.key: math.inf})
    again = resumed(tuned, machine)
    assert again.configuration != tuned.configuration
    assert again.measurement is not None


def test_a_resumed_tune_that_was_ended_goes_on_and_a_later_one_measures_anew(
    tuned: ExecutionPlan, tmp_path: Path
) -> None:
    journal = tmp_path / "journal.log"
    first = resumed(tuned, Machine(), journal)
    same = Machine()
    resumed(tuned, same, journal)
    assert not same.ran
    later = Machine()
    resumed(first, later, journal)
    assert set(later.ran) == {tuned.configuration.key}


def test_what_is_not_chosen_anew_stays(tuned: ExecutionPlan) -> None:
    plan = tuned.model_copy(update={"on_mismatch": "warn"})
    assert resumed(plan, Machine()).on_mismatch == "warn"


def test_a_plan_that_is_not_among_what_there_is_to_choose_from_is_refused() -> None:
    plan = a_plan().configured(mode="compile")
    with pytest.raises(InputError, match="isn't among what there is to choose from here; tune"):
        resumed(plan, Machine())


def test_a_resumed_plan_says_its_workload_itself() -> None:
    plan = ditplan.plan("sd3-tiny", "2xh100-nvlink").plan
    with pytest.raises(InputError, match="steps=3: the plan to go on from says it; leave it out"):
        ditplan.plan("sd3-tiny", resume=plan, steps=3)
    with pytest.raises(InputError, match="sampler=tpe knows no plan to go on from"):
        ditplan.plan("sd3-tiny", resume=plan, sampler="tpe")
    with pytest.raises(InputError, match="measure=0: the plan to go on from is run"):
        ditplan.plan("sd3-tiny", resume=plan, measure=0)
    with pytest.raises(InputError, match="the pipeline has a FluxTransformer2DModel"):
        ditplan.plan("flux-dev", resume=plan)
