"""PipeFusion for families whose text is only cross-attended to, through their own pipelines."""

import pytest

from ditplan.profiles.errors import InputError
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.plan import PipeFusion
from ditplan.runtime.launch import RankPool
from tests.distributed.family_models import small
from tests.distributed.patch_reference import by_hand
from tests.distributed.patch_tasks import lively_pipeline, patched_latents
from tests.distributed.rank_tasks import furthest, latents_of_call
from tests.distributed.small_models import plan_for, workload

EXACT = 1e-4
STEPS = 5
SIZES: dict[str, dict[str, int]] = {
    "pixart": {"height": 40, "width": 56},
    "wan": {"height": 48, "width": 80, "frames": 5},
}
THREE_PATCHES = [
    (Mesh(pipefusion=2), (1, 2)),
    (Mesh(pipefusion=3), (1, 1, 1)),
    (Mesh(cfg=2, pipefusion=2), (2, 1)),
    (Mesh(pipefusion=2, ulysses=2), (1, 2)),
    (Mesh(pipefusion=2, ring=2), (1, 2)),
]


def test_every_mesh_gives_pixarts_loop_by_hand(ranks: RankPool) -> None:
    spec, work = small("pixart"), workload(steps=STEPS, **SIZES["pixart"])
    parts = [PipeFusion(blocks_per_stage=s, patches=3, warmup_steps=2) for _, s in THREE_PATCHES]
    plans = [
        plan_for(spec, mesh, work, pipefusion=part)
        for (mesh, _), part in zip(THREE_PATCHES, parts, strict=True)
    ]
    pipeline = lively_pipeline(spec)
    alone = latents_of_call(pipeline, spec, work)
    expected = by_hand(pipeline, spec, work, parts[0])
    # the small model's latents grow large
    exact = EXACT * float(expected.std())
    assert float((expected - alone).abs().max()) > 100 * exact
    results = ranks.run(patched_latents, spec, plans, timeout_s=120)
    for number, (mesh, _) in enumerate(THREE_PATCHES):
        assert furthest(expected, [of_rank[number] for of_rank in results]) <= exact, mesh


@pytest.mark.parametrize("name", ["pixart", "wan"])
def test_one_patch_and_all_warm_up_are_one_device(ranks: RankPool, name: str) -> None:
    spec = small(name)
    work = workload(steps=STEPS, **SIZES[name])
    settings = [(1, 1), (3, STEPS)]
    plans = [
        plan_for(
            spec,
            Mesh(pipefusion=2, ulysses=2),
            work,
            pipefusion=PipeFusion(blocks_per_stage=(1, 2), patches=patches, warmup_steps=warm),
        )
        for patches, warm in settings
    ]
    alone = latents_of_call(lively_pipeline(spec), spec, work)
    exact = EXACT * float(alone.std())
    results = ranks.run(patched_latents, spec, plans, timeout_s=120)
    for number, setting in enumerate(settings):
        assert furthest(alone, [of_rank[number] for of_rank in results]) <= exact, setting


def test_wans_patches_are_the_same_on_every_mesh(ranks: RankPool) -> None:
    spec, work = small("wan"), workload(steps=STEPS, **SIZES["wan"])
    plans = [
        plan_for(
            spec,
            mesh,
            work,
            pipefusion=PipeFusion(blocks_per_stage=stages, patches=3, warmup_steps=2),
        )
        for mesh, stages in THREE_PATCHES
        if mesh.cfg == 1
    ]
    alone = latents_of_call(lively_pipeline(spec), spec, work)
    results = ranks.run(patched_latents, spec, plans, timeout_s=120)
    first = results[0][0]
    assert furthest(alone, [first]) > 100 * EXACT
    for number in range(len(plans)):
        assert furthest(first, [of_rank[number] for of_rank in results]) <= EXACT


@pytest.mark.parametrize("name", ["hunyuan-dit", "qwen-image", "flux2", "z-image"])
def test_models_that_have_no_stages_are_refused_with_a_reason(ranks: RankPool, name: str) -> None:
    spec = small(name)
    part = PipeFusion(blocks_per_stage=(1, 2), patches=2, warmup_steps=1)
    embedded = name == "flux2"
    work = workload(passes=1 if embedded else 2)
    plan = plan_for(spec, Mesh(pipefusion=2, ulysses=2), work, pipefusion=part)
    with pytest.raises(InputError, match=r"can't run with pipefusion: .*; use a plan with"):
        ranks.run(patched_latents, spec, [plan], timeout_s=60)
