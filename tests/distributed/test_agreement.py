"""Ranks that weren't given the same, and calls that fail on one rank: two ranks by gloo."""

import re
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from ditplan.profiles.configuration import PipeFusion, TaylorSeer
from ditplan.profiles.errors import InputError
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import ExecutionPlan
from ditplan.runtime.ranks.pool import RankPool
from tests.distributed.agreement_tasks import (
    Found,
    alone,
    another_plan,
    exchanged_scheduler,
    interrupted_everywhere,
    nested,
    odd_call,
    of_each,
    of_second_pipeline,
    perturbed,
    weights_before_the_plan,
    with_guidance,
    without_generator,
)
from tests.distributed.broken_tasks import (
    after_another_plan_broke,
    beside_other_ranks,
    graphs_forgotten,
)
from tests.distributed.family_models import small
from tests.distributed.small_models import plan_for, small_sd3, workload

EXACT = 1e-4
TIMEOUT_S = 300
"""Far below the time-out of groups, so that a rank that waits for one that has failed is found."""

PATCHES = PipeFusion(warmup_steps=4, patches=2, blocks_per_stage=(2, 1))
PLANS: dict[str, tuple[ModelSpec, Mesh, PipeFusion | None]] = {
    "batch": (small_sd3(), Mesh(cfg=2), None),
    "calls": (small("qwen-image"), Mesh(cfg=2), None),
    "ulysses": (small_sd3(), Mesh(ulysses=2), None),
    "ring": (small("qwen-image"), Mesh(ring=2), None),
    "pipefusion": (small_sd3(), Mesh(pipefusion=2), PATCHES),
}
NOT_GIVEN_THE_SAME = {
    "another_seed": r"rank 1 differs in generator.*manual_seed\(n\)",
    "one_generator": r"rank 1 differs in generator.*manual_seed\(n\)",
    "another_prompt": r"rank 1 differs in negative_.*prompt_embeds",
    "another_size": r"rank 1 differs in height.*the same height",
    "other_steps": r"rank 1 differs in num_inference_steps",
    "another_scale": r"rank 1 differs in (guidance_scale|true_cfg_scale)",
    "another_scheduler": r"rank 1 differs in scheduler.*the same scheduler",
    "other_weights": r"rank 1 differs in weights of transformer\.transformer_blocks\.1.*LoRA",
    "lora_on_one": r"rank 1 differs in weights of transformer\.transformer_blocks\.0\.attn\.to_v",
    "another_lora_scale": r"rank 1 differs in weights of .*attn\.to_v: load the same weights",
}
FAILURES = {
    "unknown_argument": r"TypeError: .*'heigth'",
    "bad_argument": r"ValueError: Cannot forward both `prompt`",
    "out_of_memory": r"OutOfMemoryError: CUDA out of memory",
    "keyboard": r"KeyboardInterrupt: ",
}
BETWEEN_STEPS = {
    "callback_on_one": r"InputError: what the transformer was given for its call number .* rank 1",
    "interrupt_on_one": r"InputError: the ranks don't make the same call: .*interrupt a call",
    "raising_callback": r"ZeroDivisionError: of the callback",
    "raising_last_callback": r"ZeroDivisionError: of the last callback",
}


def plan_of(name: str) -> tuple[ModelSpec, ExecutionPlan]:
    """A model and its plan for two ranks."""
    spec, mesh, part = PLANS[name]
    return spec, plan_for(spec, mesh, workload(steps=4), pipefusion=part)


def apart(found: Found | None, wanted: Found | None) -> float:
    """The largest difference of two latents; neither may be an error."""
    assert isinstance(found, torch.Tensor), found
    assert isinstance(wanted, torch.Tensor), wanted
    return float((found - wanted).abs().max())


def require_alike_and_right(
    results: list[Any], wanted: torch.Tensor, expected: dict[str, str]
) -> None:
    """Each odd call's error is the same on both ranks, and says so; the next calls are right."""
    for number, (oddity, words) in enumerate(expected.items()):
        (first, good), (second, other) = (of_rank[number] for of_rank in results)
        assert isinstance(first, str), f"{oddity}: no error"
        assert first == second, oddity
        assert re.search(words, first), first
        for found in (good, other):
            assert apart(found, wanted) <= EXACT, f"after {oddity}"


@pytest.mark.parametrize("name", PLANS)
def test_ranks_that_were_not_given_the_same_are_told_what_differs(
    pair: RankPool, name: str
) -> None:
    spec, plan = plan_of(name)
    wanted = pair.run(alone, spec, plan, timeout_s=TIMEOUT_S)[0]
    results = pair.run(odd_call, spec, plan, list(NOT_GIVEN_THE_SAME), timeout_s=TIMEOUT_S)
    require_alike_and_right(results, wanted, NOT_GIVEN_THE_SAME)


@pytest.mark.parametrize("name", ["batch", "ulysses", "pipefusion"])
def test_values_that_differ_are_found_in_a_call_of_one_step_too(pair: RankPool, name: str) -> None:
    spec, mesh, part = PLANS[name]
    plan = plan_for(
        spec,
        mesh,
        workload(steps=1),
        pipefusion=part and part.model_copy(update={"warmup_steps": 1}),
    )
    expected = {key: NOT_GIVEN_THE_SAME[key] for key in ("another_seed", "another_prompt")}
    wanted = pair.run(alone, spec, plan, timeout_s=TIMEOUT_S)[0]
    results = pair.run(odd_call, spec, plan, list(expected), timeout_s=TIMEOUT_S)
    require_alike_and_right(results, wanted, expected)


@pytest.mark.parametrize("name", PLANS)
def test_what_fails_on_one_rank_fails_on_all_and_the_next_call_is_right(
    pair: RankPool, name: str
) -> None:
    spec, plan = plan_of(name)
    expected = FAILURES if plan.configuration.pipefusion else FAILURES | BETWEEN_STEPS
    wanted = pair.run(alone, spec, plan, timeout_s=TIMEOUT_S)[0]
    results = pair.run(odd_call, spec, plan, list(expected), timeout_s=TIMEOUT_S)
    require_alike_and_right(results, wanted, expected)


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("stochastic", [False, True], ids=["noise", "stochastic steps"])
def test_without_a_generator_all_ranks_draw_what_the_first_one_does(
    pair: RankPool, name: str, stochastic: bool
) -> None:
    spec, plan = plan_of(name)
    scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True) if stochastic else None
    results = pair.run(
        without_generator, spec, plan, (3, 4), scheduler=scheduler, timeout_s=TIMEOUT_S
    )
    for wanted, found, _, _ in results:
        assert apart(found, wanted) <= EXACT
    # the first rank's generator has gone on as on one device, the other one is as it was
    torch.manual_seed(4)
    assert torch.equal(results[0][2], results[0][3])
    assert torch.equal(results[1][3], torch.rand(4))


def test_ranks_with_the_same_seed_stay_in_step_without_a_generator(pair: RankPool) -> None:
    spec, plan = plan_of("ulysses")
    results = pair.run(without_generator, spec, plan, (3, 3), timeout_s=TIMEOUT_S)
    for _, _, next_wanted, next_found in results:
        assert torch.equal(next_wanted, next_found)


def test_ranks_with_unlike_plans_are_refused(pair: RankPool) -> None:
    spec, plan = plan_of("batch")
    other = plan_for(spec, Mesh(ulysses=2), plan.workload)
    with pytest.raises(InputError, match="rank 1 differs in plan: load the same plan"):
        pair.run(another_plan, spec, [plan, other], timeout_s=TIMEOUT_S)


def test_a_plan_that_one_rank_refuses_is_refused_on_all(pair: RankPool) -> None:
    spec, plan = plan_of("batch")
    other = plan_for(small_sd3(num_layers=2), Mesh(cfg=2), plan.workload)
    with pytest.raises(InputError, match="rank 1: "):
        pair.run(another_plan, spec, [plan, other], timeout_s=TIMEOUT_S)


def test_one_number_of_the_weights_that_differs_is_found(pair: RankPool) -> None:
    spec, plan = plan_of("ulysses")
    with pytest.raises(
        InputError, match=r"weights of transformer\.transformer_blocks\.0\.attn\.to"
    ):
        pair.run(weights_before_the_plan, spec, plan, timeout_s=TIMEOUT_S)


@pytest.mark.parametrize("name", ["calls", "pipefusion"])
def test_a_plan_within_a_plan_is_refused_and_the_outer_one_goes_on(
    pair: RankPool, name: str
) -> None:
    spec, plan = plan_of(name)
    wanted = pair.run(alone, spec, plan, timeout_s=TIMEOUT_S)[0]
    for said, found in pair.run(nested, spec, plan, timeout_s=TIMEOUT_S):
        assert "is in force on this" in said and "close what" in said
        assert apart(found, wanted) <= EXACT


@pytest.mark.parametrize("name", ["batch", "ulysses"])
def test_a_second_pipeline_around_the_transformer_is_right(pair: RankPool, name: str) -> None:
    spec, plan = plan_of(name)
    for wanted, found, _ in pair.run(of_second_pipeline, spec, plan, (1, 1), timeout_s=TIMEOUT_S):
        assert apart(found, wanted) <= EXACT


def test_a_second_pipeline_that_is_not_given_the_same_is_refused(pair: RankPool) -> None:
    spec, plan = plan_of("ulysses")
    wanted = pair.run(alone, spec, plan, timeout_s=TIMEOUT_S)[0]
    for _, found, own in pair.run(of_second_pipeline, spec, plan, (1, 2), timeout_s=TIMEOUT_S):
        assert isinstance(found, str)
        assert "rank 1 differs in transformer's hidden_states" in found
        assert apart(own, wanted) <= EXACT


def test_a_second_pipeline_is_refused_beside_pipefusion(pair: RankPool) -> None:
    spec, plan = plan_of("pipefusion")
    wanted = pair.run(alone, spec, plan, timeout_s=TIMEOUT_S)[0]
    for _, found, own in pair.run(of_second_pipeline, spec, plan, (1, 1), timeout_s=TIMEOUT_S):
        assert isinstance(found, str)
        assert "called outside of the pipeline" in found
        assert apart(own, wanted) <= EXACT


@pytest.mark.parametrize("name", PLANS)
def test_a_scheduler_exchanged_under_a_plan_is_right(pair: RankPool, name: str) -> None:
    spec, plan = plan_of(name)
    for of_rank in pair.run(exchanged_scheduler, spec, plan, timeout_s=TIMEOUT_S):
        for wanted, found in of_rank:
            assert apart(found, wanted) <= EXACT


def test_a_step_cache_begins_anew_with_a_scheduler_exchanged_under_it(pair: RankPool) -> None:
    spec, cache = small_sd3(), TaylorSeer(interval=2, full_steps=1)
    plan = plan_for(spec, Mesh(ulysses=2), workload(steps=6), step_cache=cache)
    for (_, first), (_, second) in pair.run(exchanged_scheduler, spec, plan, timeout_s=TIMEOUT_S):
        assert apart(first, second) <= EXACT


@pytest.mark.parametrize("name", ["batch", "ulysses", "pipefusion"])
def test_skip_layer_guidance_is_right(pair: RankPool, name: str) -> None:
    spec, plan = plan_of(name)
    layers = {"skip_guidance_layers": [1], "skip_layer_guidance_stop": 1.0}
    for wanted, found in pair.run(with_guidance, spec, plan, timeout_s=TIMEOUT_S, **layers):
        assert apart(found, wanted) <= EXACT


def test_a_step_cache_keeps_the_calls_of_skip_layer_guidance_apart(pair: RankPool) -> None:
    spec, cache = small_sd3(), TaylorSeer(interval=2, full_steps=1)
    plan = plan_for(spec, Mesh(ulysses=2), workload(steps=6), step_cache=cache)
    # made, and then of no weight
    more = {"skip_guidance_layers": [1], "skip_layer_guidance_stop": 1.0}
    more["skip_layer_guidance_scale"] = 0.0
    for guided, usual in pair.run(of_each, spec, plan, more, {}, timeout_s=TIMEOUT_S):
        assert apart(guided, usual) <= EXACT


@pytest.mark.parametrize("name", ["batch", "ulysses", "pipefusion"])
def test_perturbed_attention_guidance_is_refused_and_without_it_its_pipeline_is_right(
    pair: RankPool, name: str
) -> None:
    spec, plan = plan_of(name)
    for _, found in pair.run(perturbed, spec, plan, 3.0, timeout_s=TIMEOUT_S):
        assert isinstance(found, str)
        assert "perturbed-attention guidance changes attention" in found
    for wanted, found in pair.run(perturbed, spec, plan, 0.0, timeout_s=TIMEOUT_S):
        assert apart(found, wanted) <= EXACT


@pytest.mark.parametrize("name", PLANS)
def test_a_call_that_all_ranks_interrupt_is_one_device_s_or_refused(
    pair: RankPool, name: str
) -> None:
    spec, plan = plan_of(name)
    usual = pair.run(alone, spec, plan, timeout_s=TIMEOUT_S)[0]
    for wanted, found, after in pair.run(interrupted_everywhere, spec, plan, timeout_s=TIMEOUT_S):
        if plan.configuration.pipefusion:
            assert isinstance(found, str)
            assert "callback_on_step_end expects the latents of one step" in found
        else:
            assert apart(found, wanted) <= EXACT
        assert apart(after, usual) <= EXACT


@pytest.mark.parametrize("name", PLANS)
def test_a_broken_call_spoils_no_other_plan_and_none_that_comes_after(
    pair: RankPool, name: str
) -> None:
    spec, plan = plan_of(name)
    wanted = torch.zeros(())
    for results in pair.run(after_another_plan_broke, spec, plan, timeout_s=TIMEOUT_S):
        broken, of_other, again = results
        assert broken == "OutOfMemoryError: CUDA out of memory"
        assert apart(of_other, wanted) <= EXACT
        assert apart(again, wanted) <= EXACT


def test_a_plan_beside_other_ranks_says_why_it_is_over(ranks: RankPool) -> None:
    spec, plan = plan_of("ulysses")
    wanted = ranks.run(alone, spec, plan, timeout_s=TIMEOUT_S)[0]
    first, second = ranks.run(beside_other_ranks, spec, plan, timeout_s=TIMEOUT_S)[:2]
    assert first[:2] == second[:2]
    for found in (first, second):
        assert apart(found[2], wanted) <= EXACT, found[2]
    assert first[0] == "OutOfMemoryError: CUDA out of memory"
    assert "failed on rank 1 in the middle of an exchange" in str(first[1])
    assert "put it in force again" in str(first[1])


def test_all_ranks_capture_anew_where_one_has_to(pair: RankPool) -> None:
    spec, plan = plan_of("ulysses")
    assert pair.run(graphs_forgotten, spec, plan, timeout_s=TIMEOUT_S) == [[0, 0, 1, 1]] * 2
