"""Weights that are spread over ranks: the same results, and what each rank holds of them."""

import io
import itertools

import numpy
import pytest
import torch
from PIL import Image

from ditplan.profiles.catalog import find_model, shipped_weights
from ditplan.profiles.configuration import PipeFusion
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import Mode, ModelSpec
from ditplan.profiles.plan import ExecutionPlan
from ditplan.profiles.workload import Workload
from ditplan.runtime.generation import generate
from ditplan.runtime.groups import RankContext
from ditplan.runtime.models.loading import load_pipeline
from ditplan.runtime.prepared import weight_group_of
from ditplan.runtime.ranks.devices import device_name
from ditplan.runtime.ranks.pool import RankPool
from ditplan.runtime.weights.sharded import shards_of
from tests.distributed.patch_tasks import patched_latents
from tests.distributed.rank_tasks import furthest
from tests.distributed.small_models import plan_for, small_flux, small_sd3, workload

EXACT = 1e-4


def with_pieces(plan: ExecutionPlan, mode: Mode = "eager") -> ExecutionPlan:
    """The plan with weights that are spread over its ranks."""
    return plan.configured(weights="sharded", mode=mode)


@pytest.mark.parametrize("spec", [small_sd3(num_layers=5), small_flux()], ids=lambda s: s.name)
def test_every_mesh_gives_what_one_device_gives_and_gives_the_weights_back(
    ranks: RankPool, spec: ModelSpec
) -> None:
    work = workload(passes=2 if "sd3" in spec.name else 1, steps=1)
    meshes = (
        [Mesh(cfg=2, ulysses=2)] if work.passes > 1 else [Mesh(ring=3), Mesh(ring=2, ulysses=2)]
    )
    alone = plan_for(spec, Mesh(), work)
    plans = [alone, *(with_pieces(plan_for(spec, mesh, work)) for mesh in meshes), alone]
    before, *shared, after = zip(
        *ranks.run(patched_latents, spec, plans, timeout_s=600), strict=True
    )
    for mesh, found in zip(meshes, shared, strict=True):
        assert sum(latents is not None for latents in found) == mesh.size
        assert furthest(before[0], list(found)) <= EXACT, mesh
    assert furthest(before[0], list(after)) == 0


@pytest.mark.parametrize("schedule", ["linear", "folded"])
def test_ranks_of_a_stage_share_out_its_blocks(ranks: RankPool, schedule: str) -> None:
    spec, work = small_sd3(num_layers=5), workload(steps=4)
    part = PipeFusion.model_validate(
        {"blocks_per_stage": (2, 3), "patches": 3, "warmup_steps": 1, "schedule": schedule}
    )
    plan = plan_for(spec, Mesh(pipefusion=2, ulysses=2), work, None, part)
    whole, pieces = zip(
        *ranks.run(patched_latents, spec, [plan, with_pieces(plan)], timeout_s=600), strict=True
    )
    assert furthest(whole[0], list(pieces)) <= EXACT


def held_bytes(
    context: RankContext, plan: ExecutionPlan, spec: ModelSpec
) -> tuple[int, int] | None:
    """Of a transformer that is loaded for a plan: bytes of blocks and of all else on this rank."""
    group = weight_group_of(plan, context)
    if group is None:
        return None
    model = load_pipeline(
        spec, shipped_weights(spec.name), context.device, "float32", None, group
    ).transformer
    shards = shards_of(model)
    assert shards is not None
    outside = sum(
        parameter.nbytes
        for name, parameter in model.named_parameters()
        if not name.startswith("transformer_blocks.")
    )
    return shards.held_bytes, outside


@pytest.mark.parametrize("mesh", [Mesh(ring=3), Mesh(cfg=2, ulysses=2)], ids=str)
def test_a_rank_holds_its_pieces_and_room_for_two_blocks(ranks: RankPool, mesh: Mesh) -> None:
    spec = find_model("sd3-tiny")
    plan = with_pieces(plan_for(spec, mesh, spec.defaults))
    (run,) = [run for run in spec.blocks if run.count > 1]
    last = sum(one.parameters for one in spec.blocks if one is not run)
    blocks = 4 * (run.count * run.parameters + last)
    found = [held for held in ranks.run(held_bytes, plan, spec, timeout_s=600) if held]
    assert len(found) == mesh.size
    for held, outside in found:
        assert held <= 1.02 * (blocks / mesh.size + 2 * 4 * run.parameters)
        assert outside == 4 * spec.outside_parameters


def test_a_picture_by_weights_that_were_read_in_pieces_is_the_same(ranks: RankPool) -> None:
    spec = find_model("sd3-tiny")
    weights = shipped_weights("sd3-tiny")
    devices = tuple(ranks.run(device_name, timeout_s=600))
    work: Workload = spec.defaults.model_copy(update={"steps": 2})

    def drawn(plan: ExecutionPlan) -> torch.Tensor:
        here = plan.fingerprint.model_copy(update={"devices": devices})
        plan = plan.model_copy(update={"fingerprint": here})
        made = ranks.run(generate, spec, weights, plan, "a red circle", 0, ".png", timeout_s=600)
        (file,) = itertools.chain.from_iterable(of_rank[1] for of_rank in made if of_rank)
        with Image.open(io.BytesIO(file)) as picture:
            return torch.from_numpy(numpy.array(picture, dtype=numpy.float32))

    whole = plan_for(spec, Mesh(cfg=2, ulysses=2), work)
    first = drawn(whole)
    assert furthest(first, [drawn(with_pieces(whole))]) <= 1


def test_plans_that_cannot_share_weights_out_are_refused() -> None:
    spec = small_sd3()
    with pytest.raises(ValueError, match="of which mesh one device has none"):
        with_pieces(plan_for(spec, Mesh(), workload()))
    with pytest.raises(ValueError, match=r"can't be gathered in mode compile\+graph"):
        with_pieces(plan_for(spec, Mesh(cfg=2), workload()), "compile+graph")
