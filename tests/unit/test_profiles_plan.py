"""What makes a plan legal, and what makes a job refuse it."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from diffusers.hooks.hooks import CacheContext, StateManager
from diffusers.hooks.taylorseer_cache import TaylorSeerCacheHook, TaylorSeerState
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ditplan.profiles.book import BookEntry, PlanBook
from ditplan.profiles.configuration import PipeFusion, TaylorSeer
from ditplan.profiles.errors import InputError
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.plan import ExecutionPlan, Quality
from tests.unit.factories import a_plan


def plan_with(**changes: Any) -> ExecutionPlan:
    """The example plan with fields of it or of its configuration replaced, validated anew."""
    plan = a_plan().model_dump()
    parts = {name: value for name, value in changes.items() if name in plan["configuration"]}
    whole = {name: value for name, value in changes.items() if name not in parts}
    configuration = plan["configuration"] | parts
    return ExecutionPlan.model_validate({**plan, "configuration": configuration, **whole})


@given(st.permutations(range(4)))
def test_any_order_of_the_ranks_is_a_placement(ranks: list[int]) -> None:
    assert plan_with(placement=ranks).configuration.placement == tuple(ranks)


@pytest.mark.parametrize("placement", [[], [0], [0, 1, 2], [0, 1, 2, 2], [1, 2, 3, 4], range(5)])
def test_a_placement_that_is_no_order_of_the_ranks_is_refused(placement: list[int]) -> None:
    with pytest.raises(ValidationError, match="once each"):
        plan_with(placement=list(placement))


def test_a_book_is_told_from_a_plan(tmp_path: Path) -> None:
    entry = BookEntry(weight=1.0, plan=a_plan())
    path = PlanBook(entries=(entry,)).save(tmp_path / "book.json")
    with pytest.raises(InputError, match=r"book\.json: this is a book of plans, one for each"):
        ExecutionPlan.load(path)


def test_absurd_degrees_are_refused_at_once() -> None:
    with pytest.raises(ValidationError, match="less than or equal to 65536"):
        plan_with(mesh={"dp": 10**12})
    with pytest.raises(ValidationError, match="once each"):
        plan_with(mesh={"dp": 60_000, "ring": 60_000})


STAGES = {"blocks_per_stage": [12, 12], "patches": 4, "warmup_steps": 1}


def test_stages_of_pipefusion_fit_its_degree() -> None:
    plan = plan_with(mesh={"pipefusion": 2, "cfg": 2}, pipefusion=STAGES)
    assert plan.configuration.pipefusion is not None
    assert plan.configuration.pipefusion.schedule == "linear"


@pytest.mark.parametrize(
    ("mesh", "pipefusion", "message"),
    [
        ({"pipefusion": 4}, STAGES, "has 4 pipefusion stages, the pipefusion part has 2"),
        ({"pipefusion": 4}, None, "has 4 pipefusion stages, the pipefusion part has 1"),
        ({"ring": 4}, STAGES, "has 1 pipefusion stages, the pipefusion part has 2"),
        ({"pipefusion": 4}, {**STAGES, "blocks_per_stage": [24]}, "at least 2 items"),
        ({"pipefusion": 2, "cfg": 2}, {**STAGES, "blocks_per_stage": [24, 0]}, "greater than 0"),
        ({"pipefusion": 2, "cfg": 2}, {**STAGES, "warmup_steps": 0}, "greater than 0"),
        ({"pipefusion": 2, "cfg": 2}, {**STAGES, "patches": 0}, "greater than 0"),
    ],
)
def test_stages_that_do_not_fit_are_refused(
    mesh: dict[str, int], pipefusion: dict[str, Any] | None, message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        plan_with(mesh=mesh, pipefusion=pipefusion)


FOLDED = {**STAGES, "schedule": "folded"}


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(1, 5))
def test_folded_stages_hold_blocks_and_their_mirrors(halves: list[int], middle: int) -> None:
    part = PipeFusion.model_validate(
        {**FOLDED, "blocks_per_stage": [*(2 * half for half in halves), middle]}
    )
    stages = [part.visits(stage) for stage in range(len(halves) + 1)]
    there = [block for visits in stages for block in visits[0]]
    back = [block for visits in reversed(stages[:-1]) for block in visits[1]]
    blocks = sum(part.blocks_per_stage)
    assert [*there, *back] == list(range(blocks))
    for visits, count in zip(stages, part.blocks_per_stage, strict=True):
        held = {block for visit in visits for block in visit}
        assert len(held) == count
        assert held == {blocks - 1 - block for block in held}


def test_only_the_last_of_folded_stages_has_an_odd_number_of_blocks() -> None:
    plan = plan_with(
        mesh={"pipefusion": 2, "cfg": 2},
        placement=range(4),
        pipefusion={**FOLDED, "blocks_per_stage": [2, 3]},
    )
    assert [plan.blocks_of(rank) for rank in range(4)] == [(0, 4), (1, 2, 3)] * 2
    with pytest.raises(ValidationError, match=r"a stage of 3 blocks can't .* an even number"):
        plan_with(
            mesh={"pipefusion": 2, "cfg": 2}, pipefusion={**FOLDED, "blocks_per_stage": [3, 2]}
        )


def test_an_exact_plan_carries_no_error() -> None:
    assert Quality(exact=False, relative_l2=0.1).relative_l2 == 0.1
    with pytest.raises(ValidationError, match="an exact plan carries no error"):
        Quality(exact=True, relative_l2=0.1)


@pytest.mark.parametrize("interval", [1, 2, 3, 5])
@pytest.mark.parametrize("full_steps", [1, 3])
def test_a_step_cache_computes_in_the_steps_of_diffusers(interval: int, full_steps: int) -> None:
    cache = TaylorSeer(interval=interval, full_steps=full_steps)
    states: Any = StateManager(cast("Any", TaylorSeerState))
    states.set_context(CacheContext("step"))
    hook = TaylorSeerCacheHook(interval, full_steps, torch.float32, states)
    theirs = [bool(hook._measure_should_compute()[0]) for _ in range(20)]
    assert [cache.computes(step) for step in range(20)] == theirs
    assert cache.computed_steps(20) == sum(theirs)


def test_a_step_cache_is_approximate_and_not_for_stages() -> None:
    cache, near = {"interval": 2}, {"exact": False, "relative_l2": 0.1}
    plan = plan_with(step_cache=cache, quality=near)
    assert plan.configuration.step_cache == TaylorSeer(interval=2)
    with pytest.raises(ValidationError, match="which is an approximation, and its quality says"):
        plan_with(step_cache=cache, quality={"exact": True})
    with pytest.raises(ValidationError, match="a step cache can't be combined with pipefusion"):
        plan_with(
            mesh={"pipefusion": 2, "cfg": 2},
            pipefusion={**FOLDED, "blocks_per_stage": [2, 3]},
            step_cache=cache,
            quality=near,
        )


def test_another_number_of_ranks_is_refused_with_both_ways_out() -> None:
    a_plan().require_ranks(4)
    with pytest.raises(InputError) as caught:
        a_plan().require_ranks(2)
    assert str(caught.value) == (
        "the plan needs 4 ranks (cfg2 x ulysses2), there are 2; start 4 ranks or tune for 2: "
        "`ditplan tune`"
    )


def test_another_model_is_refused() -> None:
    plan = a_plan()
    plan.require_model("SD3Transformer2DModel", "c0ffee")
    with pytest.raises(
        InputError, match=r"for a SD3Transformer2DModel \(sd3\).* has a Flux.*; load"
    ):
        plan.require_model("FluxTransformer2DModel", "c0ffee")
    with pytest.raises(InputError, match=r"sd3 with config c0ffee, .* has config beef; load"):
        plan.require_model("SD3Transformer2DModel", "beef")


def test_passes_of_a_model_that_takes_guidance_as_an_input_are_refused() -> None:
    flux = {
        "component": "transformer",
        "transformer_class": "FluxTransformer2DModel",
        "config_hash": "f1",
    }
    model = {"name": "flux-dev", "pipeline_class": "FluxPipeline", "transformers": [flux]}
    workload = a_plan().workload.model_dump()
    mesh = {"mesh": Mesh(ulysses=4)}
    plan_with(model=model, workload=workload | {"passes": 1}, **mesh)
    with pytest.raises(ValueError, match=r"passes=2: flux-dev makes one pass a step .*; use 1"):
        plan_with(model=model, workload=workload, **mesh)


def test_shares_of_the_tokens_are_kept_and_none_means_equal_ones() -> None:
    assert a_plan().configuration.token_shares is None
    plan = plan_with(token_shares=[2, 1])
    assert plan.configuration.token_shares == (2, 1)
    assert ExecutionPlan.from_json(plan.model_dump_json(), "a test") == plan
    older = {key: value for key, value in a_plan().model_dump().items() if key != "token_shares"}
    assert ExecutionPlan.model_validate(older) == a_plan()


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ([1], r"token shares must be 2, one for each rank of a sequence .* they are \[1\]"),
        ([1, 2, 1, 2], r"must be 2, .* they are \[1, 2, 1, 2\]; leave them out for equal ones"),
        ([1, 0], "token_shares.*greater than 0"),
        ([1.5, 1], "token_shares.*valid integer"),
    ],
)
def test_shares_that_do_not_fit_are_refused_in_one_line(shares: list[float], message: str) -> None:
    text = a_plan().model_dump_json().replace('"token_shares":null', f'"token_shares":{shares}')
    with pytest.raises(InputError, match=message) as refused:
        ExecutionPlan.from_json(text, "plan.json")
    assert "\n" not in str(refused.value)
