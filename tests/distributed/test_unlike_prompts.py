"""Prompts of many lengths: in one batch, and one after the other under compiled blocks."""

import pytest
import torch

from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import ExecutionPlan
from ditplan.runtime.groups import RankContext
from ditplan.runtime.models.inspection import inspect_configs
from ditplan.runtime.models.loading import load_pipeline
from ditplan.runtime.native import parallelize
from ditplan.runtime.ranks.pool import RankPool
from ditplan.testing.on_ranks import latents_of_call
from tests.distributed.family_models import TRANSFORMERS, VIDEO_VAE, small
from tests.distributed.family_tasks import inputs_of, step_alone, step_outputs
from tests.distributed.rank_tasks import furthest
from tests.distributed.small_models import SCHEDULER, plan_for, workload

EXACT = 1e-4


@pytest.mark.parametrize("ring", ["pass", "gather", "bidirectional"])
def test_z_image_takes_prompts_of_unlike_lengths_in_one_batch(ranks: RankPool, ring: str) -> None:
    spec = small("z-image")
    inputs = inputs_of(spec, samples=3)
    width = inputs["cap_feats"][0].shape[1]
    drawn = torch.Generator().manual_seed(7)
    # texts are padded to a multiple of 32 each
    inputs["cap_feats"] = [torch.randn(n, width, generator=drawn) for n in (70, 7, 40)]
    alone = step_alone(spec, [inputs])
    meshes = [Mesh(ulysses=2), Mesh(ring=2), Mesh(ring=2, ulysses=2), Mesh(cfg=2, ring=2)]
    plans = [plan_for(spec, mesh, workload()).configured(ring=ring) for mesh in meshes]
    results = ranks.run(step_outputs, spec, plans, [inputs], timeout_s=600)
    for mesh, found in zip(meshes, zip(*results, strict=True), strict=True):
        assert furthest(alone, list(found)) <= EXACT, mesh


def latents_by_length(
    context: RankContext, spec: ModelSpec, plan: ExecutionPlan, lengths: list[int]
) -> list[float] | None:
    """How far each prompt's latents are from those of one device; None on ranks of no plan."""
    pipeline = load_pipeline(spec, None, context.device, "float32")
    works = [plan.workload.model_copy(update={"text_tokens": length}) for length in lengths]
    alone = [latents_of_call(pipeline, spec, work) for work in works]
    with parallelize(pipeline, plan, context):
        if context.rank not in plan.configuration.placement:
            return None
        return [
            float((latents_of_call(pipeline, spec, work) - right).abs().max())
            for work, right in zip(works, alone, strict=True)
        ]


def test_compiled_blocks_take_more_lengths_than_torch_would(ranks: RankPool) -> None:
    config = TRANSFORMERS["qwen-image"] | {"num_layers": 1}
    spec = inspect_configs("small-qwen-image", config, VIDEO_VAE, SCHEDULER, 0)
    plan = plan_for(spec, Mesh(ulysses=2), workload(steps=1)).configured(mode="compile")
    plan = plan.model_copy(update={"fallback": "refuse"})
    lengths = list(range(5, 14))
    for found in ranks.run(latents_by_length, spec, plan, lengths, timeout_s=600)[:2]:
        assert found is not None
        assert len(found) == len(lengths)
        assert max(found) <= EXACT
