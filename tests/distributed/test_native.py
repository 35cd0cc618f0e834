"""The native runtime on real diffusers classes: whatever the mesh, one device's result."""

import itertools

import pytest
import torch

from ditplan.profiles.catalog import find_model
from ditplan.profiles.errors import InputError
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import ModelSpec
from ditplan.runtime.ranks.pool import RankPool
from tests.distributed.rank_tasks import (
    answers_a_replaced_forward,
    attends_twice,
    changes_left,
    furthest,
    latents,
    latents_after_groups_were_closed,
    latents_around_the_door,
    latents_of_each,
    latents_without_exchange,
    merge_error,
    refusals_of_door,
    transformer_output,
)
from tests.distributed.small_models import plan_for, small_sd3, workload

EXACT = 1e-4
MESHES = [
    Mesh(cfg=cfg, ring=ring, ulysses=ulysses)
    for cfg, ring, ulysses in itertools.product((1, 2), (1, 2, 3, 4), (1, 2, 3, 4))
    if cfg * ring * ulysses <= 4
]


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    return small_sd3()


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_every_mesh_gives_the_latents_of_one_device(
    ranks: RankPool, spec: ModelSpec, mesh: Mesh
) -> None:
    work = workload()
    alone = ranks.run(latents, spec, plan_for(spec, Mesh(), work), timeout_s=600)[0]
    results = ranks.run(latents, spec, plan_for(spec, mesh, work), timeout_s=600)
    assert sum(result is not None for result in results) == mesh.size
    assert furthest(alone, results) <= EXACT


@pytest.mark.parametrize("text_tokens", [333, 4, 5])
def test_uneven_text_tokens_on_2_3_and_4_ranks(
    ranks: RankPool, spec: ModelSpec, text_tokens: int
) -> None:
    work = workload(text_tokens=text_tokens, steps=1)
    meshes = [Mesh(), Mesh(ulysses=2), Mesh(ring=3), Mesh(ulysses=3), Mesh(ring=2, ulysses=2)]
    plans = [plan_for(spec, mesh, work) for mesh in meshes]
    results = ranks.run(latents_of_each, spec, plans, timeout_s=600)
    for number in range(1, len(plans)):
        assert furthest(results[0][0], [of_rank[number] for of_rank in results]) <= EXACT


@pytest.mark.parametrize("variant", ["bidirectional", "gather"])
def test_other_ways_around_a_ring_give_the_latents_of_one_device(
    ranks: RankPool, spec: ModelSpec, variant: str
) -> None:
    work = workload(steps=1)
    plans = [plan_for(spec, Mesh(), work)]
    for mesh in (Mesh(ring=3), Mesh(ring=4)):
        plans.append(plan_for(spec, mesh, work).configured(ring=variant))
    alone, *results = zip(*ranks.run(latents_of_each, spec, plans, timeout_s=600), strict=True)
    for found in results:
        assert furthest(alone[0], list(found)) <= EXACT


@pytest.mark.parametrize("placement", [(3, 2, 1, 0), (2, 0, 3, 1), (1, 3, 0, 2)])
@pytest.mark.parametrize("mesh", [Mesh(cfg=2, ulysses=2), Mesh(ring=2, ulysses=2), Mesh(ulysses=4)])
def test_any_placement_gives_the_latents_of_one_device(
    ranks: RankPool, spec: ModelSpec, mesh: Mesh, placement: tuple[int, ...]
) -> None:
    work = workload(steps=1)
    alone = ranks.run(latents, spec, plan_for(spec, Mesh(), work), timeout_s=600)[0]
    results = ranks.run(latents, spec, plan_for(spec, mesh, work, placement), timeout_s=600)
    assert furthest(alone, results) <= EXACT


def test_plans_one_after_the_other_in_one_process_group_do_not_disturb_each_other(
    ranks: RankPool, spec: ModelSpec
) -> None:
    work = workload(steps=2)
    meshes = [Mesh(), Mesh(ulysses=4), Mesh(), Mesh(cfg=2, ring=2), Mesh(ring=3), Mesh(ulysses=4)]
    plans = [plan_for(spec, mesh, work) for mesh in meshes]
    results = ranks.run(latents_of_each, spec, plans, timeout_s=600)
    for number in range(len(plans)):
        assert furthest(results[0][0], [of_rank[number] for of_rank in results]) <= EXACT


def test_the_comparison_notices_ranks_that_attend_to_their_own_share_only(
    ranks: RankPool, spec: ModelSpec
) -> None:
    work = workload()
    alone = ranks.run(latents, spec, plan_for(spec, Mesh(), work), timeout_s=600)[0]
    plan = plan_for(spec, Mesh(ulysses=4), work)
    wrong = ranks.run(latents_without_exchange, spec, plan, timeout_s=600)
    assert furthest(alone, list(wrong)) > 100 * EXACT


def test_a_multistep_solver_gives_the_latents_of_one_device(
    ranks: RankPool, spec: ModelSpec
) -> None:
    work = workload(steps=4)
    alone = ranks.run(latents, spec, plan_for(spec, Mesh(), work), "dpm", timeout_s=600)[0]
    plan = plan_for(spec, Mesh(cfg=2, ulysses=2), work)
    assert furthest(alone, ranks.run(latents, spec, plan, "dpm", timeout_s=600)) <= EXACT


@pytest.mark.parametrize("mesh", MESHES[1:], ids=str)
def test_bf16_latents_are_as_close_to_float32_as_those_of_one_device(
    ranks: RankPool, spec: ModelSpec, mesh: Mesh
) -> None:
    def run(mesh: Mesh, dtype: str) -> torch.Tensor:
        plan = plan_for(spec, mesh, workload(dtype=dtype))
        found = ranks.run(latents, spec, plan, timeout_s=600)[0]
        assert found is not None
        return found.float()

    def distance(mesh: Mesh) -> float:
        return float((run(mesh, "bfloat16") - exact).norm() / exact.norm())

    exact = run(Mesh(), "float32")
    assert 1e-4 < distance(Mesh()) < 1e-1
    assert distance(mesh) <= 1.1 * distance(Mesh())


def test_the_trained_model_gives_the_latents_of_one_device_on_every_mesh(ranks: RankPool) -> None:
    tiny = find_model("sd3-tiny")
    work = tiny.defaults.model_copy(update={"dtype": "float32", "steps": 6})
    plans = [plan_for(tiny, mesh, work) for mesh in MESHES]
    results = ranks.run(latents_of_each, tiny, plans, timeout_s=600)
    for number, mesh in enumerate(MESHES):
        of_mesh = [of_rank[number] for of_rank in results]
        assert furthest(results[0][0], of_mesh) <= EXACT, mesh


def test_dual_attention_blocks_give_the_latents_of_one_device(ranks: RankPool) -> None:
    spec = small_sd3(dual_attention_layers=[0, 2], qk_norm="rms_norm")
    work = workload(steps=1)
    alone = ranks.run(latents, spec, plan_for(spec, Mesh(), work), timeout_s=600)[0]
    for mesh in (Mesh(ulysses=3), Mesh(ring=2, ulysses=2)):
        results = ranks.run(latents, spec, plan_for(spec, mesh, work), timeout_s=600)
        assert furthest(alone, results) <= EXACT


@pytest.mark.parametrize("return_dict", [False, True])
def test_controlnet_residuals_are_split_with_their_tokens(
    ranks: RankPool, spec: ModelSpec, return_dict: bool
) -> None:
    work = workload()
    one = plan_for(spec, Mesh(), work)
    plain = ranks.run(transformer_output, spec, one, 2, timeout_s=600)[0]
    alone = ranks.run(transformer_output, spec, one, 2, control=True, timeout_s=600)[0]
    many = plan_for(spec, Mesh(cfg=2, ulysses=2), work)
    results = ranks.run(
        transformer_output, spec, many, 2, control=True, return_dict=return_dict, timeout_s=600
    )
    assert furthest(alone, results) <= EXACT
    assert furthest(plain, results) > 100 * EXACT


@pytest.mark.parametrize("samples", [1, 2, 3, 5])
@pytest.mark.parametrize("mesh", [Mesh(cfg=2), Mesh(dp=2), Mesh(dp=2, cfg=2), Mesh(dp=3)], ids=str)
def test_dp_and_cfg_split_any_number_of_samples(
    ranks: RankPool, spec: ModelSpec, mesh: Mesh, samples: int
) -> None:
    work = workload()
    alone = ranks.run(
        transformer_output, spec, plan_for(spec, Mesh(), work), samples, timeout_s=600
    )
    plan = plan_for(spec, mesh, work)
    results = ranks.run(transformer_output, spec, plan, samples, timeout_s=600)
    assert furthest(alone[0], results) <= EXACT


def test_a_closed_plan_leaves_the_transformer_as_it_was(ranks: RankPool, spec: ModelSpec) -> None:
    plan = plan_for(spec, Mesh(cfg=2, ring=2), workload())
    assert ranks.run(changes_left, spec, plan, timeout_s=600) == [[]] * 4


def test_an_attention_processor_that_goes_around_the_door_is_an_error(
    ranks: RankPool, spec: ModelSpec
) -> None:
    plan = plan_for(spec, Mesh(ulysses=4), workload())
    with pytest.raises(InputError, match=r"transformer_blocks.0.attn .* 0 times .*native"):
        ranks.run(latents_around_the_door, spec, plan, timeout_s=600)


def test_attending_twice_in_one_module_is_an_error(ranks: RankPool) -> None:
    with pytest.raises(InputError, match=r"doubled called .* 2 times"):
        ranks.run(attends_twice, timeout_s=600)


def test_a_module_whose_forward_was_replaced_is_refused(ranks: RankPool) -> None:
    with pytest.raises(InputError, match=r"the forward of replaced has been replaced"):
        ranks.run(answers_a_replaced_forward, timeout_s=600)


def test_the_door_refuses_what_it_cannot_honour(ranks: RankPool) -> None:
    said = ranks.run(refusals_of_door, timeout_s=600)[0]
    assert set(said) == {"mask", "causal", "dropout", "grouped"}
    assert all("blocks.0.attn" in message for message in said.values())


@pytest.mark.parametrize("sizes", [(12,), (6, 6), (1, 11), (5, 4, 3)])
def test_attention_merged_from_pieces_equals_attention_over_all_keys(
    ranks: RankPool, sizes: tuple[int, ...]
) -> None:
    assert ranks.run(merge_error, sizes, timeout_s=600)[0] <= 1e-6


def test_fewer_text_tokens_than_ranks_is_an_error_that_says_the_limit(
    ranks: RankPool, spec: ModelSpec
) -> None:
    plan = plan_for(spec, Mesh(ulysses=4), workload(text_tokens=3))
    with pytest.raises(InputError, match=r"3 text tokens .* at most 3"):
        ranks.run(latents, spec, plan, timeout_s=600)


def test_a_plan_of_another_model_is_refused(ranks: RankPool, spec: ModelSpec) -> None:
    other = plan_for(small_sd3(num_layers=2), Mesh(ulysses=2), workload())
    with pytest.raises(InputError, match="has another config: num_layers is 3, the plan has 2"):
        ranks.run(latents, spec, other, timeout_s=600)


def test_a_plan_for_more_ranks_than_there_are_is_refused(ranks: RankPool, spec: ModelSpec) -> None:
    plan = plan_for(spec, Mesh(ulysses=5), workload())
    with pytest.raises(InputError, match=r"needs 5 ranks .* there are 4"):
        ranks.run(latents, spec, plan, timeout_s=600)


def test_a_plan_whose_groups_were_closed_is_put_in_force_on_new_ones(
    ranks: RankPool, spec: ModelSpec
) -> None:
    plan = plan_for(spec, Mesh(ring=2, ulysses=2), workload())
    alone = ranks.run(latents, spec, plan_for(spec, Mesh(), workload()), timeout_s=600)[0]
    again = ranks.run(latents_after_groups_were_closed, spec, plan, timeout_s=600)
    assert furthest(alone, again) <= EXACT
