"""A plan's step cache: the same on any mesh, and diffusers' own where that has one."""

import pytest

from ditplan.profiles.configuration import TaylorSeer
from ditplan.profiles.errors import InputError
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import ModelSpec
from ditplan.runtime.ranks.pool import RankPool
from tests.distributed.family_models import small
from tests.distributed.family_tasks import latents_of_pipeline
from tests.distributed.rank_tasks import changes_left, furthest, latents
from tests.distributed.small_models import plan_for, small_flux, small_sd3, workload
from tests.distributed.step_cache_tasks import (
    latents_of_diffusers,
    refused_beside_another_cache,
    two_calls,
)

EXACT = 1e-4
CACHE = TaylorSeer(interval=3, full_steps=2)
WORK = workload(steps=8)


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    return small_sd3()


@pytest.mark.parametrize(
    "mesh", [Mesh(ulysses=2), Mesh(ring=2), Mesh(cfg=2), Mesh(cfg=2, ulysses=2)], ids=str
)
def test_every_mesh_gives_the_latents_of_one_device_with_the_same_cache(
    ranks: RankPool, spec: ModelSpec, mesh: Mesh
) -> None:
    plain = ranks.run(latents, spec, plan_for(spec, Mesh(), WORK), timeout_s=600)[0]
    one = plan_for(spec, Mesh(), WORK, step_cache=CACHE)
    alone = ranks.run(latents, spec, one, timeout_s=600)[0]
    plan = plan_for(spec, mesh, WORK, step_cache=CACHE)
    results = ranks.run(latents, spec, plan, timeout_s=600)
    assert furthest(alone, results) <= EXACT
    assert furthest(plain, results) > 10 * EXACT


def test_a_cache_that_computes_every_step_gives_the_latents_of_one_device(
    ranks: RankPool, spec: ModelSpec
) -> None:
    alone = ranks.run(latents, spec, plan_for(spec, Mesh(), WORK), timeout_s=600)[0]
    plan = plan_for(spec, Mesh(cfg=2, ulysses=2), WORK, step_cache=TaylorSeer(interval=1))
    assert furthest(alone, ranks.run(latents, spec, plan, timeout_s=600)) <= EXACT


@pytest.mark.parametrize("cache", [CACHE, TaylorSeer(interval=2, full_steps=3, order=2)], ids=str)
def test_latents_are_those_of_diffusers_own_cache_of_the_last_layer(
    ranks: RankPool, cache: TaylorSeer
) -> None:
    flux, work = small_flux(), workload(steps=8, passes=1)
    plan = plan_for(flux, Mesh(ulysses=2), work, step_cache=cache)
    theirs = ranks.run(latents_of_diffusers, flux, plan, timeout_s=600)[0]
    (ours, _), ran = ranks.run(two_calls, flux, plan, timeout_s=600)[0]
    assert furthest(theirs, [ours]) <= EXACT
    assert ran == 2 * cache.computed_steps(work.steps) < 2 * work.steps


def test_the_next_picture_begins_anew(ranks: RankPool, spec: ModelSpec) -> None:
    plan = plan_for(spec, Mesh(ulysses=2), WORK, step_cache=CACHE)
    (first, second), ran = ranks.run(two_calls, spec, plan, timeout_s=600)[0]
    assert furthest(first, [second]) == 0
    # steps 0 and 1, then 3 and 6
    assert ran == 2 * 4


def test_the_calls_of_a_step_are_extrapolated_apart_whoever_makes_them(ranks: RankPool) -> None:
    qwen, work = small("qwen-image"), workload(steps=6)
    one = plan_for(qwen, Mesh(), work, step_cache=CACHE)
    alone = ranks.run(latents_of_pipeline, qwen, one, timeout_s=600)[0]
    plan = plan_for(qwen, Mesh(cfg=2, ulysses=2), work, step_cache=CACHE)
    assert furthest(alone, ranks.run(latents_of_pipeline, qwen, plan, timeout_s=600)) <= EXACT


def test_closing_a_plan_leaves_no_cache_behind(ranks: RankPool) -> None:
    flux = small_flux()
    plan = plan_for(flux, Mesh(ulysses=2), workload(passes=1), step_cache=CACHE)
    assert ranks.run(changes_left, flux, plan, timeout_s=600) == [[]] * 4


def test_a_second_cache_is_refused(ranks: RankPool) -> None:
    flux = small_flux()
    plan = plan_for(flux, Mesh(), workload(passes=1), step_cache=CACHE)
    with pytest.raises(InputError, match=r"the plan has its own \(taylorseer interval 3 after 2"):
        ranks.run(refused_beside_another_cache, flux, plan, timeout_s=600)
