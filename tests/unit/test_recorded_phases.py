"""`run --trace` records what ranks did: pieces that touch, in the format of `simulate --trace`."""

import json
import warnings
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from ditplan.profiles.catalog import find_model
from ditplan.profiles.configuration import PipeFusion
from ditplan.profiles.errors import InputError
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import PlannedModel, bare_plan
from ditplan.profiles.rank_run import Phase
from ditplan.profiles.trace_events import recorded_trace
from ditplan.reporting.timeline_figures import recorded_rows
from ditplan.runtime.generation import _call, generate
from ditplan.runtime.groups import GroupCache, RankContext
from ditplan.runtime.models.loading import load_pipeline, prompt_embeddings
from ditplan.runtime.profiling.phases import (
    SHOWN_STEPS,
    Interval,
    PhaseRecorder,
    category_of,
    painted,
    require_recordable,
)

CPU = torch.device("cpu")


def recorded(steps: int) -> tuple[Phase, ...]:
    """The phases of a real pipeline's loop on one device."""
    spec: ModelSpec = find_model("sd3-tiny")
    workload = spec.defaults.model_copy(update={"steps": steps, "dtype": "float32"})
    pipeline = load_pipeline(spec, None, CPU, "float32")
    words = prompt_embeddings(spec, workload, CPU, seed=1)
    recorder = PhaseRecorder(rank=0)
    with recorder.watching(pipeline):
        _call(pipeline, spec, workload, words, "latent", 0, steps)
    assert "step" not in vars(pipeline.scheduler)
    return recorder.phases()


@pytest.mark.parametrize("steps", [2, 5])
def test_phases_of_a_loop_touch_from_its_begin_to_the_end_of_the_steps_shown(steps: int) -> None:
    phases = recorded(steps)
    assert {phase.step for phase in phases} == set(range(1, min(steps, SHOWN_STEPS) + 1))
    categories = {phase.category for phase in phases}
    assert categories == {"compute", "attention", "scheduler", "launch"}
    for before, after in pairwise(phases):
        assert after.start_s == pytest.approx(before.end_s, abs=1e-9)
        assert after.name != before.name
    for step in range(1, min(steps, SHOWN_STEPS) + 1):
        of_step = [phase.category for phase in phases if phase.step == step]
        assert of_step.count("scheduler") == 1
        assert of_step.count("attention") >= find_model("sd3-tiny").block_count


def test_a_rank_computes_beside_a_collective_and_waits_for_it_otherwise() -> None:
    own = [Interval("aten::mm", 0, 4), Interval("c10d::alltoall_base_", 4, 5)]
    own += [Interval("aten::mm", 6, 8)]
    attention = [Interval("aten::scaled_dot_product_attention", 1, 2)]
    under_way = [Interval("gloo:all_to_all", 4.5, 9)]
    pieces = painted(own, attention, under_way, (0, 10))
    assert [(one.name, one.start, one.end) for one in pieces] == [
        ("compute", 0, 1),
        ("attention", 1, 2),
        ("compute", 2, 4),
        ("c10d::alltoall_base_", 4, 5),
        ("gloo:all_to_all", 5, 6),
        ("compute", 6, 8),
        ("gloo:all_to_all", 8, 9),
        ("launch", 9, 10),
    ]
    names = ("c10d::alltoall_base_", "gloo:all_to_all", "c10d::_allgather_base_", "gloo:send")
    assert [*map(category_of, names)] == ["ulysses", "ulysses", "gather", "ring"]


def test_a_recorded_trace_is_read_as_a_simulated_one(tmp_path: Path) -> None:
    spec = find_model("sd3-tiny")
    plan = bare_plan(PlannedModel.of_spec(spec), spec.defaults, Mesh(ulysses=2))
    phases = [
        Phase(rank=rank, step=1, name="compute", category="compute", start_s=100.0, end_s=101.0)
        for rank in (0, 1)
    ]
    phases += [
        Phase(
            rank=1,
            step=1,
            name="gloo:all_to_all",
            category="ulysses",
            start_s=100.5,
            end_s=102.0,
            is_under_way=True,
        )
    ]
    text = recorded_trace(plan.configuration, phases, 2.0, "a test")
    assert json.loads(text)["otherData"]["latency_s"] == 2.0
    path = tmp_path / "t.json"
    path.write_text(text)
    rows = recorded_rows(path, plan).rows
    assert list(rows) == ["rank 0 (ulysses 0)", "rank 1 (ulysses 1)", "exchanges of rank 1"]
    (sent,) = rows["exchanges of rank 1"]
    assert (sent.category, sent.start_s, sent.seconds) == ("ulysses", 0.5, 1.5)


def test_what_can_not_be_told_is_refused() -> None:
    spec = find_model("sd3-tiny")
    part = PipeFusion(blocks_per_stage=(1, 1), patches=2, warmup_steps=1)
    model, workload = PlannedModel.of_spec(spec), spec.defaults
    staged = bare_plan(model, workload, Mesh(pipefusion=2), pipefusion=part)
    with pytest.raises(InputError, match="phases of stages aren't recorded"):
        require_recordable(staged, CPU)
    whole = bare_plan(model, workload, Mesh())
    require_recordable(whole, CPU)
    with pytest.raises(InputError, match="ranks on CPUs only"):
        require_recordable(whole, torch.device("cuda"))


def test_a_plan_that_makes_a_picture_is_recorded_in_another_run(tmp_path: Path) -> None:
    spec = find_model("sd3-tiny")
    workload = spec.defaults.model_copy(update={"steps": 3, "dtype": "float32"})
    plan = bare_plan(PlannedModel.of_spec(spec), workload, Mesh())
    plan = plan.model_copy(update={"on_mismatch": "warn"})
    context = RankContext(0, 1, CPU, GroupCache(0, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = generate(context, spec, None, plan, "a red circle", 0, ".png", records=True)
    assert made is not None
    run, files = made
    assert len(files) == 1
    text = recorded_trace(plan.configuration, run.phases, run.latency_s, "a test")
    path = tmp_path / "t.json"
    path.write_text(text)
    (slices,) = recorded_rows(path, plan).rows.values()
    assert {"compute", "attention", "scheduler"} <= {one.category for one in slices}
    ends = [one.start_s + one.seconds for one in slices]
    assert max(ends) >= sum(one.seconds for one in slices) - 1e-6
