"""Prompts of many lengths: in one batch, and one after the other under compiled blocks."""

import pytest
import torch

from ditplan.profiles.mesh import Mesh
from ditplan.runtime.ranks.pool import RankPool
from tests.distributed.family_models import small
from tests.distributed.family_tasks import inputs_of, step_alone, step_outputs
from tests.distributed.rank_tasks import furthest
from tests.distributed.small_models import plan_for, workload

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
    results = ranks.run(step_outputs, spec, plans, [inputs], timeout_s=120)
    for mesh, found in zip(meshes, zip(*results, strict=True), strict=True):
        assert furthest(alone, list(found)) <= EXACT, mesh
