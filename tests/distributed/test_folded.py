"""The folded schedule of PipeFusion: a patch goes to the last stage and back through mirrors."""

import pytest

from ditplan.profiles.configuration import PipeFusion
from ditplan.profiles.errors import InputError
from ditplan.profiles.family import family_of
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.workload import Workload
from ditplan.runtime.pipefusion.stage_predictor import require_stages
from ditplan.runtime.ranks.pool import RankPool
from ditplan.testing.on_ranks import latents_of_call
from tests.distributed.family_models import small
from tests.distributed.full_forwards import by_full_forwards
from tests.distributed.patch_tasks import (
    latents_of_interrupted_call,
    lively_pipeline,
    patched_latents,
)
from tests.distributed.rank_tasks import furthest
from tests.distributed.small_models import plan_for, small_flux, small_sd3, workload

EXACT = 1e-4
STEPS = 4
SKIPPED_SIZE = {"height": 112, "width": 144}
RUNS = [(Mesh(pipefusion=3), (2, 2, 2), 2), (Mesh(pipefusion=2, ulysses=2), (2, 4), 2)]


def folded(*blocks: int, patches: int, warmup_steps: int = 1) -> PipeFusion:
    """A folded pipeline of stages of so many blocks."""
    return PipeFusion(
        blocks_per_stage=blocks, patches=patches, warmup_steps=warmup_steps, schedule="folded"
    )


def check(
    ranks: RankPool,
    spec: ModelSpec,
    work: Workload,
    runs: list[tuple[Mesh, tuple[int, ...], int]],
    **more: float,
) -> None:
    """Each run is the loop of full forwards by one process, and one device if all is warm-up."""
    pipeline = lively_pipeline(spec)
    alone = latents_of_call(pipeline, spec, work, **more)
    parts = [folded(*stages, patches=patches) for _, stages, patches in runs]
    expected = {
        part.patches: by_full_forwards(pipeline, spec, work, part, **more) for part in parts
    }
    exact = EXACT * max(1.0, float(alone.std()))
    for stale in expected.values():
        assert float((stale - alone).abs().max()) > 20 * exact
    warm = [part.model_copy(update={"warmup_steps": STEPS}) for part in parts]
    plans = [
        plan_for(spec, mesh, work, None, part)
        for of_kind in (parts, warm)
        for (mesh, _, _), part in zip(runs, of_kind, strict=True)
    ]
    results = list(
        zip(*ranks.run(patched_latents, spec, plans, timeout_s=600, **more), strict=True)
    )
    for number, (run, part) in enumerate(zip(runs, parts, strict=True)):
        assert furthest(expected[part.patches], list(results[number])) <= exact, run
        assert furthest(alone, list(results[len(runs) + number])) <= exact, run


def test_skips_to_mirrors_give_the_loop_of_full_forwards(ranks: RankPool) -> None:
    check(ranks, small("hunyuan-dit"), workload(steps=STEPS, **SKIPPED_SIZE), RUNS)


def test_an_odd_block_in_the_middle_is_on_the_last_stage(ranks: RankPool) -> None:
    runs = [
        (Mesh(pipefusion=3), (2, 2, 1), 3),
        (Mesh(cfg=2, pipefusion=2), (4, 1), 2),
    ]
    check(ranks, small_sd3(num_layers=5), workload(steps=STEPS), runs)


def test_mirrors_of_another_kind_and_guidance_by_two_calls(ranks: RankPool) -> None:
    spec, work = small("qwen-image"), workload(steps=STEPS)
    check(ranks, spec, work, [(Mesh(pipefusion=2, ring=2), (2, 1), 3)])
    spec, work = small_flux(), workload(passes=1, steps=STEPS)
    check(ranks, spec, work, [(Mesh(pipefusion=2), (2, 2), 3)])


def test_an_interrupted_call_leaves_nothing_on_its_way(ranks: RankPool) -> None:
    spec, work, part = small_sd3(num_layers=7), workload(steps=5), folded(2, 2, 2, 1, patches=4)
    plan = plan_for(spec, Mesh(pipefusion=4), work, None, part)
    expected = by_full_forwards(lively_pipeline(spec), spec, work, part)
    with pytest.raises(InputError, match="ended before its last step"):
        ranks.run(latents_of_interrupted_call, spec, plan, timeout_s=600)
    for (found,) in ranks.run(patched_latents, spec, [plan], timeout_s=600):
        assert furthest(expected, [found]) <= EXACT * max(1.0, float(expected.std()))


def test_long_skips_are_refused_where_they_would_cross_links() -> None:
    part, family = folded(2, 4, patches=2), family_of("HunyuanDiT2DModel")
    require_stages(part, 6, family)
    linear = part.model_copy(update={"schedule": "linear"})
    with pytest.raises(InputError, match=r"long skips.*set the plan's schedule to folded"):
        require_stages(linear, 6, family)
    require_stages(linear, 6, family_of("SD3Transformer2DModel"))
