"""PipeFusion for families whose text is only cross-attended to, through their own pipelines."""

import pytest
import torch

from ditplan.profiles.configuration import PipeFusion
from ditplan.profiles.errors import InputError
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.splits import split_sizes
from ditplan.profiles.workload import Workload
from ditplan.runtime.ranks.pool import RankPool
from ditplan.testing.on_ranks import latents_of_call
from tests.distributed.family_models import small
from tests.distributed.full_forwards import by_full_forwards
from tests.distributed.patch_reference import by_hand
from tests.distributed.patch_tasks import (
    latents_of_negatives,
    lively_pipeline,
    negative_of,
    patched_latents,
)
from tests.distributed.rank_tasks import furthest
from tests.distributed.small_models import plan_for, workload

EXACT = 1e-4
STEPS = 5
SIZES: dict[str, dict[str, int]] = {
    "pixart": {"height": 40, "width": 56},
    "wan": {"height": 48, "width": 80, "frames": 5},
    "cogvideox": {"height": 48, "width": 80, "frames": 5},
    "cogvideox-2b": {"height": 48, "width": 80, "frames": 5},
    "flux2": {"height": 144, "width": 176},
    "auraflow": {"height": 80, "width": 112},
    "hunyuan-video": {"height": 96, "width": 176, "frames": 5},
}
JOINT = [
    "sd3.5",
    "flux2",
    "auraflow",
    "cogvideox",
    "cogvideox-2b",
    "qwen-image",
    "hunyuan-video",
]
EMBEDDED = ("hunyuan-video", "flux2")
THREE_PATCHES = [
    (Mesh(pipefusion=2), (1, 2)),
    (Mesh(pipefusion=3), (1, 1, 1)),
    (Mesh(cfg=2, pipefusion=2), (2, 1)),
    (Mesh(pipefusion=2, ulysses=2), (1, 2)),
    (Mesh(pipefusion=2, ring=2), (1, 2)),
]


def stages_of(blocks: int, mesh: Mesh) -> tuple[int, ...]:
    """Blocks per stage: as even as can be, the last stage with the more."""
    return tuple(reversed(split_sizes(blocks, mesh.pipefusion)))


def padded_text(work: Workload) -> dict[str, torch.Tensor]:
    """A mask that leaves out the last three tokens of the prompt."""
    mask = torch.ones(work.batch, work.text_tokens, dtype=torch.bool)
    mask[:, -3:] = False
    return {"prompt_attention_mask": mask}


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
    results = ranks.run(patched_latents, spec, plans, timeout_s=600)
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
    results = ranks.run(patched_latents, spec, plans, timeout_s=600)
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
    results = ranks.run(patched_latents, spec, plans, timeout_s=600)
    first = results[0][0]
    assert furthest(alone, [first]) > 100 * EXACT
    for number in range(len(plans)):
        assert furthest(first, [of_rank[number] for of_rank in results]) <= EXACT


@pytest.mark.parametrize("name", JOINT)
def test_text_that_is_cut_at_the_blocks_gives_the_loop_of_full_forwards(
    ranks: RankPool, name: str
) -> None:
    spec = small(name)
    passes = 1 if name in EMBEDDED else 2
    work = workload(steps=STEPS, passes=passes, **SIZES.get(name, {}))
    runs = [run for run in THREE_PATCHES if run[0].pipefusion <= spec.block_count]
    if name in ("qwen-image", *EMBEDDED):
        runs = [run for run in runs if run[0].cfg == 1]
    parts = [
        PipeFusion(blocks_per_stage=stages_of(spec.block_count, mesh), patches=3, warmup_steps=2)
        for mesh, _ in runs
    ]
    plans = [
        plan_for(spec, mesh, work, pipefusion=part)
        for (mesh, _), part in zip(runs, parts, strict=True)
    ]
    pipeline = lively_pipeline(spec)
    padding = padded_text(work) if name == "hunyuan-video" else {}
    alone = latents_of_call(pipeline, spec, work, **padding)
    expected = by_full_forwards(pipeline, spec, work, parts[0], **padding)
    exact = EXACT * max(1.0, float(expected.std()))
    assert float((expected - alone).abs().max()) > 20 * exact
    results = ranks.run(patched_latents, spec, plans, timeout_s=600, **padding)
    for number, (mesh, _) in enumerate(runs):
        assert furthest(expected, [of_rank[number] for of_rank in results]) <= exact, mesh


def test_negative_prompts_may_have_other_lengths_than_those_before(ranks: RankPool) -> None:
    spec = small("qwen-image")
    work = workload(steps=STEPS, **SIZES.get("qwen-image", {}))
    part = PipeFusion(blocks_per_stage=(1, 2), patches=3, warmup_steps=STEPS)
    plan = plan_for(spec, Mesh(pipefusion=2, ulysses=2), work, pipefusion=part)
    lengths = [work.text_tokens, 4, work.text_tokens]
    pipeline = lively_pipeline(spec)
    for of_rank in ranks.run(latents_of_negatives, spec, plan, lengths, timeout_s=600):
        for length, found in zip(lengths, of_rank, strict=True):
            alone = latents_of_call(pipeline, spec, work, **negative_of(spec, work, length))
            assert furthest(alone, [found]) <= EXACT * max(1.0, float(alone.std()))
    late = part.model_copy(update={"warmup_steps": 2})
    plan = plan_for(spec, Mesh(pipefusion=2, ulysses=2), work, pipefusion=late)
    (first, _, again), *_ = ranks.run(latents_of_negatives, spec, plan, lengths, timeout_s=600)
    assert torch.equal(first, again)


def test_a_model_that_has_no_stages_is_refused_with_a_reason(ranks: RankPool) -> None:
    spec = small("z-image")
    part = PipeFusion(blocks_per_stage=(1, 2), patches=2, warmup_steps=1)
    work = workload()
    plan = plan_for(spec, Mesh(pipefusion=2, ulysses=2), work, pipefusion=part)
    with pytest.raises(InputError, match=r"can't run with pipefusion: .*; use a plan with"):
        ranks.run(patched_latents, spec, [plan], timeout_s=600)
