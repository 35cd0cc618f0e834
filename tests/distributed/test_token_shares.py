"""Unequal shares of the tokens, for GPUs of unlike speed: they give one device's result."""

import pytest

from ditplan.profiles.configuration import PipeFusion
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import ModelSpec
from ditplan.runtime.ranks.pool import RankPool
from tests.distributed.patch_reference import by_hand
from tests.distributed.patch_tasks import lively_pipeline, patched_latents
from tests.distributed.rank_tasks import furthest, latents_of_each, tokens_held
from tests.distributed.small_models import plan_for, small_sd3, workload

EXACT = 1e-4
SHARES = [
    (Mesh(ulysses=2), (2, 1)),
    (Mesh(ulysses=3), (3, 1, 2)),
    (Mesh(ring=2), (1, 2)),
    (Mesh(ring=3), (3, 1, 2)),
    (Mesh(ring=2, ulysses=2), (4, 2, 1, 3)),
    (Mesh(cfg=2, ulysses=2), (1, 3)),
]


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    return small_sd3(num_layers=4)


def test_any_shares_give_the_latents_of_one_device(ranks: RankPool, spec: ModelSpec) -> None:
    work = workload(steps=2)
    plans = [plan_for(spec, Mesh(), work)]
    plans += [plan_for(spec, mesh, work, token_shares=shares) for mesh, shares in SHARES]
    results = ranks.run(latents_of_each, spec, plans, timeout_s=600)
    for number, plan in enumerate(plans):
        of_plan = [of_rank[number] for of_rank in results]
        assert furthest(results[0][0], of_plan) <= EXACT, (
            plan.mesh,
            plan.configuration.token_shares,
        )


def test_ranks_hold_tokens_in_proportion_to_their_shares(ranks: RankPool, spec: ModelSpec) -> None:
    plan = plan_for(spec, Mesh(ring=2, ulysses=2), workload(steps=1), token_shares=(4, 2, 1, 3))
    # 63 image tokens and 7 of text
    expected = [(25, 3), (13, 1), (6, 1), (19, 2)]
    assert ranks.run(tokens_held, spec, plan, timeout_s=600) == expected


@pytest.mark.parametrize("shares", [None, (4, 2, 1, 3)])
def test_ulysses_groups_whose_ranks_stand_in_different_orders_give_those_of_one_device(
    ranks: RankPool, spec: ModelSpec, shares: tuple[int, ...] | None
) -> None:
    work, mesh = workload(steps=1), Mesh(ring=2, ulysses=2)
    plans = [
        plan_for(spec, Mesh(), work),
        plan_for(spec, mesh, work, (0, 1, 3, 2), token_shares=shares),
    ]
    results = ranks.run(latents_of_each, spec, plans, timeout_s=600)
    assert furthest(results[0][0], [of_rank[1] for of_rank in results]) <= EXACT


def test_patches_in_uneven_shares_give_the_latents_of_the_loop_by_hand(
    ranks: RankPool, spec: ModelSpec
) -> None:
    work = workload(steps=4)
    part = PipeFusion(blocks_per_stage=(1, 3), patches=3, warmup_steps=1)
    plans = [
        plan_for(spec, mesh, work, placement, part, shares)
        for mesh, placement, shares in (
            (Mesh(pipefusion=2, ulysses=2), (0, 1, 3, 2), (3, 1)),
            (Mesh(pipefusion=2, ring=2), None, (1, 2)),
        )
    ]
    results = ranks.run(patched_latents, spec, plans, timeout_s=600)
    expected = by_hand(lively_pipeline(spec), spec, work, part)
    for number in range(len(plans)):
        assert furthest(expected, [of_rank[number] for of_rank in results]) <= EXACT
