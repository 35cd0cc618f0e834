"""Drift: slow steps are reported soon, disturbed ones never; by seconds that are fed in."""

import json
import random
from typing import Any

import pytest
import torch

from ditplan.profiles.configuration import TaylorSeer
from ditplan.profiles.errors import PlanWarning
from ditplan.profiles.fingerprint import Fingerprint
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.plan import ExecutionPlan, Measurement
from ditplan.runtime.generation import _call
from ditplan.runtime.groups import GroupCache, RankContext
from ditplan.runtime.models.loading import load_pipeline, prompt_embeddings
from ditplan.runtime.native import parallelize
from ditplan.runtime.profiling.denoising_clock import DenoisingClock
from ditplan.runtime.profiling.drift import DriftReport, StageWatch, StepBounds, watches_of
from ditplan.runtime.profiling.live_steps import LiveSteps
from tests.distributed.small_models import plan_for, small_sd3, workload
from tests.unit.factories import a_plan

SPEC, WORK = small_sd3(), workload(steps=12)
STEP_S = 1.0


def a_step_watch() -> StageWatch:
    """Of steps that took a second in each of the plan's runs."""
    return StageWatch(15, STEP_S, 1.1 * STEP_S)


def disturbed(seed: int, steps: int) -> list[float]:
    """Steps of a machine that does nothing else but what machines do: times vary by 3%, one in
    thirty takes far longer, clocks swing slowly by 2%.
    """
    draw = random.Random(seed)
    times = []
    for step in range(steps):
        swing = 1 + 0.02 * ((step // 100) % 2)
        hiccup = draw.uniform(2, 20) if draw.random() < 1 / 30 else 1
        times.append(STEP_S * swing * hiccup * draw.lognormvariate(0, 0.03))
    return times


def test_a_thousand_undisturbed_steps_raise_no_alarm() -> None:
    for seed in range(200):
        watch = a_step_watch()
        assert not any([watch.add(seconds) for seconds in disturbed(seed, 1000)]), seed


@pytest.mark.parametrize("times", [1.25, 2.0, 50.0])
def test_slow_steps_are_reported_within_twenty(times: float) -> None:
    for seed in range(200):
        watch = a_step_watch()
        for seconds in disturbed(seed, 100):
            watch.add(seconds)
        slow = [watch.add(times * seconds) for seconds in disturbed(seed + 1000, 20)]
        assert slow.count(True) == 1, seed
        assert watch.is_drifting


def test_drift_ends_when_steps_are_as_they_were_and_not_before() -> None:
    watch = a_step_watch()
    changes = [watch.add(seconds) for seconds in [*[2.0] * 8, *[1.0, 2.0] * 20, *[1.0] * 12]]
    assert [place for place, has_changed in enumerate(changes) if has_changed] == [7, 56]


def test_what_a_plan_says_nothing_of_is_held_against_the_first_calls() -> None:
    watch = StageWatch(5, None, None)
    assert not any([watch.add(seconds) for seconds in (1.0, 1.2, 0.9, 1.0, 30.0)])
    assert watch.most_s == pytest.approx(1.5)
    assert [watch.add(seconds) for seconds in (1.4, 1.6, 1.6, 1.6)][-1]


def test_a_step_is_bounded_by_the_runs_of_a_measured_plan_and_else_by_the_interval() -> None:
    bounds = StepBounds.of(a_plan())
    assert bounds.expected_s == pytest.approx(1.4 / 20)
    assert bounds.most_s == pytest.approx(1.1 * 1.5 / 20)
    on_paper = StepBounds.of(a_plan().model_copy(update={"measurement": None}))
    assert on_paper.most_s == pytest.approx(2.0 / 20)
    bare = StepBounds.of(plan_for(SPEC, Mesh(ulysses=2), WORK))
    assert (bare.expected_s, bare.most_s) == (None, None)


def test_the_steps_of_a_step_cache_are_taken_together() -> None:
    plan = plan_for(SPEC, Mesh(ulysses=2), WORK, step_cache=TaylorSeer(interval=3, full_steps=2))
    bounds = StepBounds.of(plan)
    assert (bounds.skipped, bounds.together) == (3, 3)


def run_under(plan: ExecutionPlan, *calls: int, **given: Any) -> tuple[LiveSteps, RankContext]:
    """Calls a pipeline on one rank under a plan, once for each number of steps, watched."""
    context = RankContext(0, 1, torch.device("cpu"), GroupCache(0, 1))
    pipeline = load_pipeline(SPEC, None, context.device, "float32")
    live = LiveSteps(pipeline, plan, context, given.get("on_drift"))
    work = given.get("work", WORK)
    words = prompt_embeddings(SPEC, work, context.device, seed=1)
    with parallelize(pipeline, plan, context, live.watching):
        for steps in calls:
            _call(pipeline, SPEC, work, words, "latent", 0, steps)
    return live, context


def measured(seconds: float) -> ExecutionPlan:
    """A plan of one rank that isn't left as it is, whose runs took so long."""
    run = Measurement(
        latency_s=seconds, runs_s=(seconds,), measured_on="2026-01-02", devices="1 x CPU"
    )
    plan = plan_for(SPEC, Mesh(), WORK).configured(attention="cpu")
    where = Fingerprint(cluster="any", devices=("any",), link_kinds=(), software={})
    return plan.model_copy(update={"measurement": run, "fingerprint": where})


def test_a_pipeline_slower_than_its_plan_is_warned_of_once_and_told_each_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[DriftReport] = []
    with pytest.warns(PlanWarning, match=r"a step takes .* on rank 0, .* times the") as warned:
        live, _ = run_under(measured(12e-9), 3, 10, 3, on_drift=told.append)
    assert len(warned) == 1
    (report,) = told
    assert (report.stage, report.has_ended, report.seen) == ("denoising", False, 8)
    logged = [json.loads(one.message) for one in caplog.records if one.name == "ditplan"]
    assert [one["event"] for one in logged] == ["ditplan.drift"]
    assert logged[0]["expected_s"] == pytest.approx(1e-9)
    text = live.prometheus()
    labels = '{model="small-sd3",plan="one device, eager",rank="0",stage="denoising"}'
    assert f"ditplan_stage_drifting{labels} 1" in text
    # 9 of ten steps and 2 of three: the first of a call isn't like the others
    assert f"ditplan_stage_observed_total{labels} 11" in text
    assert "ditplan_calls_total" in text


def test_a_pipeline_as_fast_as_its_plan_raises_no_alarm() -> None:
    told: list[DriftReport] = []
    live, _ = run_under(measured(1e6), 3, 12, 12, on_drift=told.append)
    assert told == []
    assert "ditplan_stage_drifting" in live.prometheus()


def test_calls_of_another_size_are_counted_and_not_compared() -> None:
    live, _ = run_under(measured(12e-9), 3, 12, work=WORK.model_copy(update={"height": 36}))
    assert (live.calls, live.calls_of_other_sizes) == (2, 2)
    assert live._watches["denoising"].seen == 0


def test_each_stage_is_watched() -> None:
    assert watches_of(StepBounds(1.0, 2.0, 1, 1)).keys() == {"encoding", "denoising", "decoding"}
    live, _ = run_under(measured(1e6), 3, 12, 12)
    assert {stage: one.seen for stage, one in live._watches.items()} == {
        "encoding": 2,
        "denoising": 22,
        "decoding": 2,
    }


def test_a_watch_or_a_clock_on_its_calls_puts_no_plan_in_force_anew() -> None:
    context = RankContext(0, 1, torch.device("cpu"), GroupCache(0, 1))
    pipeline = load_pipeline(SPEC, None, context.device, "float32")
    plan = measured(1e6)
    live, clock = LiveSteps(pipeline, plan, context), DenoisingClock(context.device)
    words = prompt_embeddings(SPEC, WORK, context.device, seed=1)
    with parallelize(pipeline, plan, context, live.watching):
        # it gets a class of its own each time that a plan is put in force
        before = type(pipeline.transformer)
        for _ in range(2):
            with clock.watching(pipeline):
                _call(pipeline, SPEC, WORK, words, "latent", 0, 3)
        assert type(pipeline.transformer) is before
        assert (clock.steps, live.calls) == (3, 2)


def test_encoding_and_decoding_are_held_against_calls_of_the_same_kind() -> None:
    context = RankContext(0, 1, torch.device("cpu"), GroupCache(0, 1))
    pipeline = load_pipeline(SPEC, None, context.device, "float32")
    live = LiveSteps(pipeline, measured(1e6), context)
    words = prompt_embeddings(SPEC, WORK, context.device, seed=1)
    with parallelize(pipeline, measured(1e6), context, live.watching):
        for form in ("latent", "latent", "latent", "pt", "pt"):
            _call(pipeline, SPEC, WORK, words, form, 0, 2)
            if form == "latent":
                seen = live._watches["decoding"].seen
    assert seen == 2
    assert live._watches["decoding"].seen == 2
    assert live._watches["denoising"].seen == 4
