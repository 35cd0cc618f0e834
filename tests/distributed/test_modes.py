"""Compiled blocks give what eager ones give, are compiled once, and never fall back silently."""

import pytest

from ditplan.profiles.errors import InputError, PlanWarning
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.plan import ExecutionPlan, Fallback
from ditplan.runtime.ranks.pool import RankPool
from tests.distributed.flux_tasks import flux_latents
from tests.distributed.rank_tasks import (
    furthest,
    latents,
    latents_and_compiles,
    latents_of_blocks_that_break_graphs,
)
from tests.distributed.small_models import plan_for, small_flux, small_sd3, workload

EXACT = 1e-4
KINDS_OF_BLOCKS = 2


def in_mode(plan: ExecutionPlan, fallback: Fallback = "eager", **parts: object) -> ExecutionPlan:
    """The plan, executed otherwise."""
    plan = plan.model_copy(update={"fallback": fallback})
    return plan.configured(**parts)


def test_compiled_blocks_on_every_axis_give_the_latents_of_one_device(ranks: RankPool) -> None:
    spec, work = small_sd3(), workload()
    alone = ranks.run(latents, spec, plan_for(spec, Mesh(), work), timeout_s=600)[0]
    meshes = [Mesh(cfg=2, ulysses=2), Mesh(ring=2, ulysses=2)]
    plans = [
        in_mode(plan_for(spec, mesh, work), mode="compile", fallback="refuse") for mesh in meshes
    ]
    again = [*plans, *plans]
    for of_rank in ranks.run(latents_and_compiles, spec, again, latents, timeout_s=600):
        for place, (found, compiles) in enumerate(of_rank):
            assert furthest(alone, [found]) <= EXACT
            assert compiles == (KINDS_OF_BLOCKS if place < len(plans) else 0)


def test_compiled_blocks_of_flux_give_the_latents_of_one_device(ranks: RankPool) -> None:
    spec, work = small_flux(), workload(passes=1)
    alone = ranks.run(flux_latents, spec, plan_for(spec, Mesh(), work), timeout_s=600)[0]
    plan = in_mode(plan_for(spec, Mesh(ulysses=2), work), mode="compile", fallback="refuse")
    results = ranks.run(latents_and_compiles, spec, [plan, plan], flux_latents, timeout_s=600)
    for (first, _), (second, compiles) in results[:2]:
        assert furthest(alone, [first, second]) <= EXACT
        assert compiles == 0


def test_blocks_that_cannot_be_compiled_run_eagerly_and_say_why(ranks: RankPool) -> None:
    spec, work = small_sd3(), workload()
    alone = ranks.run(latents, spec, plan_for(spec, Mesh(), work), timeout_s=600)[0]
    plan = in_mode(plan_for(spec, Mesh(ulysses=4), work), mode="compile")
    with pytest.warns(PlanWarning, match=r"run eagerly, they can't be compiled") as warned:
        found = ranks.run(latents_of_blocks_that_break_graphs, spec, plan, timeout_s=600)
    assert furthest(alone, list(found)) <= EXACT
    messages = [str(warning.message) for warning in warned]
    assert len(messages) == len(set(messages))


def test_a_plan_that_demands_compiled_blocks_is_refused_with_the_reason(ranks: RankPool) -> None:
    plan = in_mode(
        plan_for(small_sd3(), Mesh(ulysses=4), workload()), mode="compile", fallback="refuse"
    )
    with pytest.raises(InputError, match=r"can't be compiled .*; use a plan with mode eager"):
        ranks.run(latents_of_blocks_that_break_graphs, small_sd3(), plan, timeout_s=600)


def test_a_mode_that_cpus_do_not_have_is_refused(ranks: RankPool) -> None:
    plan = in_mode(plan_for(small_sd3(), Mesh(), workload()), mode="graph")
    with pytest.raises(InputError, match="can't run mode graph on CPUs"):
        ranks.run(latents, small_sd3(), plan, timeout_s=600)
