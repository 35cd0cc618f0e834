"""Guidance by two calls a step, through the pipelines that make them."""

import pytest

from ditplan.profiles.configuration import PipeFusion
from ditplan.profiles.errors import InputError
from ditplan.profiles.mesh import Mesh
from ditplan.runtime.generation import measure_plan
from ditplan.runtime.ranks.pool import RankPool
from tests.distributed.family_models import small
from tests.distributed.family_tasks import latents_of_pipeline
from tests.distributed.rank_tasks import furthest
from tests.distributed.small_models import plan_for, workload

EXACT = 1e-4
SIZES: dict[str, dict[str, int]] = {
    "wan": {"height": 48, "width": 80, "frames": 5},
    "qwen-image": {},
}
MESHES = [
    Mesh(cfg=2),
    Mesh(cfg=2, ulysses=2),
    Mesh(cfg=2, ring=2),
    Mesh(dp=2, cfg=2),
    Mesh(ulysses=3),
]


@pytest.mark.parametrize("name", ["wan", "qwen-image"])
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_every_mesh_gives_the_latents_of_one_device(ranks: RankPool, name: str, mesh: Mesh) -> None:
    spec, work = small(name), workload(batch=2, **SIZES[name])
    alone = ranks.run(latents_of_pipeline, spec, plan_for(spec, Mesh(), work), timeout_s=600)[0]
    results = ranks.run(latents_of_pipeline, spec, plan_for(spec, mesh, work), timeout_s=600)
    assert sum(result is not None for result in results) == mesh.size
    assert furthest(alone, results) <= EXACT


def test_both_transformers_of_a_pipeline_are_split(ranks: RankPool) -> None:
    spec, work = small("wan"), workload(**SIZES["wan"])
    plans = [plan_for(spec, mesh, work) for mesh in (Mesh(), Mesh(cfg=2, ulysses=2))]
    alone, split = (ranks.run(latents_of_pipeline, spec, p, True, timeout_s=600) for p in plans)
    single = ranks.run(latents_of_pipeline, spec, plans[0], timeout_s=600)
    assert furthest(alone[0], split) <= EXACT
    assert furthest(alone[0], single) > 100 * EXACT


@pytest.mark.parametrize("name", ["wan", "qwen-image"])
def test_a_call_without_guidance_is_refused_where_cfg_splits_calls(
    ranks: RankPool, name: str
) -> None:
    spec = small(name)
    plan = plan_for(spec, Mesh(cfg=2, ulysses=2), workload(**SIZES[name]))
    with pytest.raises(InputError, match=r"one pass a step; give it a negative prompt"):
        ranks.run(latents_of_pipeline, spec, plan, guided=False, timeout_s=600)


@pytest.mark.parametrize("name", ["wan", "qwen-image"])
def test_a_plan_that_splits_calls_is_measured_again_and_again(ranks: RankPool, name: str) -> None:
    spec = small(name)
    plan = plan_for(spec, Mesh(cfg=2, ulysses=2), workload(steps=2, **SIZES[name]))
    for _ in range(2):
        for run in ranks.run(measure_plan, spec, None, plan, timeout_s=600):
            assert run is not None
            assert run.latency_s > 0


def test_stages_of_two_transformers_are_refused(ranks: RankPool) -> None:
    spec, part = small("wan"), PipeFusion(blocks_per_stage=(1, 2), patches=2, warmup_steps=1)
    plan = plan_for(spec, Mesh(pipefusion=2, ulysses=2), workload(**SIZES["wan"]), pipefusion=part)
    with pytest.raises(InputError, match=r"has 2 transformers, .* use a plan with pipefusion 1"):
        ranks.run(latents_of_pipeline, spec, plan, True, timeout_s=600)
