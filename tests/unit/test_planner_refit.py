"""Correcting predictions by measurements, choosing what to measure, comparing runs."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.planner_search import WRONG, World, fastest_s, ours, task_of, true_seconds
from ditplan.planner.network.topology import Topology
from ditplan.planner.search.acquisition import (
    corrected,
    most_to_gain,
    next_batch,
    trials_left,
    untried,
)
from ditplan.planner.search.correction import (
    COMPONENTS,
    MOST_TIMES,
    Refit,
    component_seconds,
    component_widths,
    components_of,
    refit,
)
from ditplan.planner.search.pricing import price_all
from ditplan.planner.search.racing import behind_leader
from ditplan.planner.search.ranking import PricedCandidate
from ditplan.planner.search.search import search
from ditplan.planner.space.approximations import ApproximationPolicy
from ditplan.planner.task import Task
from ditplan.profiles.plan import Measurement
from tests.unit.planner_factories import WORKLOAD, a_cluster, sd3_like

CLUSTER = a_cluster(devices=4, inside_bytes_per_s=24e9, inside_kind="pcie")
TASK = Task(sd3_like(), WORKLOAD, CLUSTER, modes=("eager",), allowed=ApproximationPolicy())
FOUND = price_all(TASK, Topology(TASK.cluster))[0]
PREDICTIONS = [ranked.prediction for ranked in FOUND]
PREDICTED_S = np.array([prediction.latency_s for prediction in PREDICTIONS])


def scaled_s(**factors: float) -> np.ndarray:
    """What all candidates would take if these components took so many times longer."""
    return np.array(
        [
            math.fsum(
                s * factors.get(COMPONENTS[part], 1.0) for part, s in prediction.parts.items()
            )
            for prediction in PREDICTIONS
        ]
    )


def corrected_by(true_s: np.ndarray, rows: list[int]) -> Refit:
    """Predictions corrected by what these candidates really take."""
    return refit(components_of(FOUND), {row: float(true_s[row]) for row in rows})


def measured_as(ranked: PricedCandidate, seconds: float) -> PricedCandidate:
    """The candidate with a measurement."""
    found = Measurement(latency_s=seconds, runs_s=(seconds,), measured_on="now", devices="a test")
    return replace(ranked, measurement=found)


def with_parts(*parts: str) -> list[int]:
    """The first candidates that have these parts, one for each."""
    return [
        next(row for row, found in enumerate(PREDICTIONS) if found.parts.get(part, 0.0) > 0)
        for part in parts
    ]


def test_every_part_belongs_to_a_component() -> None:
    assert {part for found in PREDICTIONS for part in found.parts} <= COMPONENTS.keys()
    assert set(COMPONENTS) == {part for found in PREDICTIONS for part in found.parts}


def test_components_sum_to_the_latency() -> None:
    _, seconds = component_seconds(PREDICTIONS)
    assert seconds.sum(axis=1) == pytest.approx(PREDICTED_S)


def test_without_measurements_predictions_stay() -> None:
    found = refit(components_of(FOUND), {})
    assert found.latency_s == pytest.approx(PREDICTED_S)
    assert found.multipliers == pytest.approx(1.0)


@pytest.mark.parametrize("times", [0.1, 0.5, 3.0, 10.0])
def test_a_factor_on_everything_is_found_and_reorders_nothing(times: float) -> None:
    found = corrected_by(PREDICTED_S * times, [0, 5])
    assert found.latency_s == pytest.approx(PREDICTED_S * times, rel=0.04)
    assert found.multipliers == pytest.approx(1.0, abs=0.06)


@pytest.mark.parametrize("component", ["compute", "attention", "ulysses", "ring"])
def test_three_plans_tell_something_of_which_component_is_slow(component: str) -> None:
    true_s = scaled_s(**{component: 2.0})
    rows = with_parts("bubbles", "ulysses", "ring")
    others = [row for row in range(len(FOUND)) if row not in rows]

    def mean_error(seconds: np.ndarray) -> float:
        misses = np.abs(np.log(seconds / true_s))[others]
        return float(np.mean(misses))

    assert mean_error(corrected_by(true_s, rows).latency_s) < 0.9 * mean_error(PREDICTED_S)


def test_uncertainty_shrinks_with_what_is_measured_and_never_vanishes() -> None:
    few, many = (corrected_by(PREDICTED_S, rows) for rows in ([0, 1], list(range(12))))
    assert many.spread[20:].mean() < few.spread[20:].mean()
    assert many.spread.min() > 0.01


def test_a_component_that_is_far_off_is_not_believed_beyond_its_bound() -> None:
    exchanging = [row for row, found in enumerate(PREDICTIONS) if found.parts.get("ulysses")]
    found = corrected_by(scaled_s(ulysses=5.0), [*range(5), *exchanging[:3]])
    assert found.multipliers.max() == pytest.approx(MOST_TIMES)


@settings(max_examples=60)
@given(data=st.data())
def test_multipliers_stay_bounded_whatever_is_measured(data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(0, len(FOUND) - 1), min_size=1, max_size=6, unique=True))
    seconds = data.draw(st.lists(st.floats(1e-4, 1e4), min_size=len(rows), max_size=len(rows)))
    found = refit(components_of(FOUND), dict(zip(rows, seconds, strict=True)))
    assert np.all(np.isfinite(found.latency_s))
    assert np.all(found.latency_s > 0)
    assert np.all(found.multipliers <= MOST_TIMES * 1.0001)
    assert np.all(found.multipliers >= 1 / MOST_TIMES / 1.0001)


def test_widths_are_read_back_from_the_intervals() -> None:
    names, seconds = component_seconds(PREDICTIONS)
    shares = {name: 0.05 if name == "compute" else 0.35 for name in names}
    halves = seconds @ np.array([shares[name] for name in names])
    changed = [
        found.model_copy(update={"interval_s": (found.latency_s - h, found.latency_s + h)})
        for found, h in zip(PREDICTIONS, halves, strict=True)
    ]
    widths = dict(zip(names, component_widths(changed, seconds), strict=True))
    assert widths["compute"] == pytest.approx(0.05 / 1.645, rel=0.01)
    assert widths["ulysses"] == pytest.approx(0.35 / 1.645, rel=0.01)


@pytest.mark.parametrize(("fast", "slow"), [("ulysses", "ring"), ("ring", "ulysses")])
def test_the_next_batch_goes_where_measurements_point(fast: str, slow: str) -> None:
    true_s = scaled_s(**{fast: 0.3, slow: 2.0})
    rows = with_parts("ulysses", "ring", "bubbles")
    results = [measured_as(r, true_s[i]) if i in rows else r for i, r in enumerate(FOUND)]
    unstaged = [ranked for ranked in results if not ranked.configuration.pipefusion]
    chosen = [ranked.configuration.mesh for ranked in next_batch(unstaged, 3)]
    assert len(set(chosen)) == 3
    assert not any(ranked.measurement for ranked in next_batch(unstaged, 3))
    degrees = {axis: [getattr(mesh, axis) for mesh in chosen] for axis in (fast, slow)}
    assert sum(degrees[fast]) > sum(degrees[slow])


def test_a_batch_does_not_ask_the_same_thing_twice() -> None:
    results = [measured_as(FOUND[0], PREDICTED_S[0]), *FOUND[1:]]
    one_by_one = []
    for _ in range(3):
        (chosen,) = next_batch(results, 1)
        one_by_one.append(chosen)
        row = results.index(chosen)
        known_s = {n: r.measurement.latency_s for n, r in enumerate(results) if r.measurement}
        expected_s = refit(components_of(results), known_s).latency_s[row]
        results[row] = measured_as(chosen, float(expected_s))
    first = [measured_as(FOUND[0], PREDICTED_S[0]), *FOUND[1:]]
    assert next_batch(first, 3) == one_by_one


def test_unmeasured_candidates_are_ordered_by_the_corrected_prediction() -> None:
    results = [measured_as(FOUND[0], 2 * PREDICTED_S[0]), *FOUND[1:]]
    after = corrected(results)
    assert after[0].latency_s == 2 * PREDICTED_S[0]
    assert after[1].latency_s == pytest.approx(2 * PREDICTED_S[1], rel=0.02)
    assert after[1].prediction == FOUND[1].prediction


def test_nothing_is_to_gain_where_the_measured_are_far_ahead() -> None:
    fast = [measured_as(FOUND[row], PREDICTED_S[row]) for row in range(3)]
    slow = [ranked for ranked in FOUND if ranked.prediction.latency_s > 2 * PREDICTED_S[0]]
    assert slow
    assert most_to_gain([*fast, *slow]) <= 0
    assert most_to_gain([*fast, *FOUND[3:]]) > 0
    assert most_to_gain(fast) == 0


def test_what_needs_as_much_memory_as_a_plan_that_had_too_little_is_not_tried() -> None:
    results = [measured_as(FOUND[0], PREDICTED_S[0]), *FOUND[1:]]
    room = max(ranked.prediction.memory_bytes for ranked in next_batch(results, 3))
    needing = FOUND[-1].prediction.model_copy(update={"memory_bytes": room})
    results[-1] = replace(FOUND[-1], prediction=needing, failure="rank 0: CUDA out of memory")
    chosen = next_batch(results, 3)
    assert chosen
    assert all(ranked.prediction.memory_bytes < room for ranked in chosen)
    results[-1] = replace(results[-1], failure="NCCL error: remote process exited")
    assert any(ranked.prediction.memory_bytes >= room for ranked in next_batch(results, 3))


def test_the_baseline_is_in_the_first_batch_and_beside_the_count() -> None:
    baseline = next(ranked for ranked in FOUND if ranked.is_baseline)
    for top in (1, 2, 12):
        assert baseline in untried(FOUND, top)
        assert trials_left(FOUND, top) in (top, top + 1)


def test_a_drifting_clock_makes_nobody_slower() -> None:
    drift = [1.0, 1.3, 0.9, 1.1]
    runs = {name: {n: a * d for n, d in enumerate(drift)} for name, a in (("a", 1.0), ("b", 1.1))}
    behind = behind_leader(runs)["b"]
    assert math.exp(behind.mean) == pytest.approx(1.1)
    assert behind.is_clear
    assert not behind.may_be_ahead_by(0.0)


def test_noise_leaves_open_who_is_slower() -> None:
    runs = {"a": {0: 1.0, 1: 1.2, 2: 1.0}, "b": {0: 1.1, 1: 1.05, 2: 1.04}}
    behind = behind_leader(runs)["b"]
    assert not behind.is_clear
    assert behind.may_be_ahead_by(0.03)


def test_one_round_is_never_clear_and_rounds_apart_say_nothing() -> None:
    assert not behind_leader({"a": {0: 1.0}, "b": {0: 9.0}})["b"].is_clear
    assert behind_leader({"a": {0: 1.0, 1: 1.0}, "b": {2: 9.0, 3: 9.0}}) == {}
    assert behind_leader({}) == {}


@pytest.mark.parametrize(
    "task",
    [
        task_of("sd3", "8xa100-nvlink", 4),
        replace(task_of("sd3", "2x8xl40-pcie-eth100", 16), modes=("compile+graph",)),
    ],
    ids=["one host, all modes", "two hosts, one mode"],
)
def test_the_planner_s_choice_is_the_fastest_of_everything(task: Task) -> None:
    best_s, count = fastest_s(task)
    found = search(task)
    on_first = [
        one.prediction.latency_s
        for one in found.ranked
        if sorted(one.configuration.placement) == list(range(one.configuration.mesh.size))
    ]
    assert count >= len(on_first)
    assert min(on_first) == pytest.approx(best_s, rel=1e-6)
    assert found.best.prediction.latency_s <= best_s * (1 + 1e-6)


def test_a_wrong_cost_model_costs_little_after_twelve_trials() -> None:
    task = replace(TASK, cluster=a_cluster(hosts=2, devices=4, inside_kind="pcie"), modes=None)
    found = [r for r in price_all(task, Topology(task.cluster))[0] if not r.too_big]
    regrets = []
    for seed in range(6):
        world = World(task, found, true_seconds(found, WRONG[0], seed), seed)
        rows = ours(world, 12)
        assert len(rows) <= 13
        regrets.append(world.true_s[rows[0]] / world.true_s.min() - 1)
    assert np.mean(regrets) <= 0.03
