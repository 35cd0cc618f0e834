"""FLUX through its own pipeline: whatever the mesh, one device's result."""

import itertools

import pytest
import torch

from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.workload import Workload
from ditplan.runtime.models.loading import call_arguments, load_pipeline
from ditplan.runtime.ranks.pool import RankPool
from tests.distributed.flux_tasks import flux_latents, flux_output
from tests.distributed.rank_tasks import furthest
from tests.distributed.small_models import plan_for, small_flux, small_sd3, workload

EXACT = 1e-4
MESHES = [
    Mesh(ring=ring, ulysses=ulysses)
    for ring, ulysses in itertools.product((1, 2, 3, 4), (1, 2, 3, 4))
    if ring * ulysses <= 4
]


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    return small_flux()


@pytest.fixture(scope="module")
def work() -> Workload:
    return workload(passes=1)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_every_mesh_gives_flux_latents_of_one_device(
    ranks: RankPool, spec: ModelSpec, work: Workload, mesh: Mesh
) -> None:
    alone = ranks.run(flux_latents, spec, plan_for(spec, Mesh(), work), timeout_s=600)[0]
    results = ranks.run(flux_latents, spec, plan_for(spec, mesh, work), timeout_s=600)
    assert alone is not None and alone.shape == (1, 63, 16)
    assert sum(result is not None for result in results) == mesh.size
    assert furthest(alone, results) <= EXACT


@pytest.mark.parametrize(
    ("batch", "mesh"),
    [(1, Mesh(ring=2, ulysses=2)), (3, Mesh(ring=2, ulysses=2)), (3, Mesh(dp=2, ulysses=2))],
)
def test_flux_without_guidance_gives_the_latents_of_one_device(
    ranks: RankPool, batch: int, mesh: Mesh
) -> None:
    spec, work = small_flux(guidance_embeds=False), workload(passes=1, batch=batch)
    alone = ranks.run(flux_latents, spec, plan_for(spec, Mesh(), work), timeout_s=600)[0]
    plan = plan_for(spec, mesh, work)
    assert furthest(alone, ranks.run(flux_latents, spec, plan, timeout_s=600)) <= EXACT


@pytest.mark.parametrize("mesh", [Mesh(ulysses=4), Mesh(ring=3)], ids=str)
def test_the_comparison_notices_ranks_with_wrong_positions(
    ranks: RankPool, spec: ModelSpec, work: Workload, mesh: Mesh
) -> None:
    alone = ranks.run(flux_latents, spec, plan_for(spec, Mesh(), work), timeout_s=600)[0]
    plan = plan_for(spec, mesh, work)
    wrong = ranks.run(flux_latents, spec, plan, own_positions=True, timeout_s=600)
    assert furthest(alone, wrong) > 100 * EXACT


def test_the_guidance_scale_reaches_the_transformer(
    ranks: RankPool, spec: ModelSpec, work: Workload
) -> None:
    plan = plan_for(spec, Mesh(ulysses=2), work)
    other = spec.model_copy(update={"guidance_scale": 1.0})
    usual = ranks.run(flux_latents, spec, plan, timeout_s=600)
    assert furthest(usual[0], ranks.run(flux_latents, other, plan, timeout_s=600)) > EXACT


def test_residuals_of_both_sorts_of_blocks_are_split_with_their_tokens(
    ranks: RankPool, spec: ModelSpec, work: Workload
) -> None:
    one = plan_for(spec, Mesh(), work)
    plain = ranks.run(flux_output, spec, one, timeout_s=600)[0]
    alone = ranks.run(flux_output, spec, one, control=True, timeout_s=600)[0]
    plan = plan_for(spec, Mesh(ring=2, ulysses=2), work)
    results = ranks.run(flux_output, spec, plan, control=True, timeout_s=600)
    assert furthest(alone, results) <= EXACT
    assert furthest(plain, results) > 100 * EXACT


@pytest.mark.parametrize("mesh", [Mesh(ulysses=3), Mesh(cfg=2, ring=2)], ids=str)
def test_ids_with_a_batch_dim_are_split_along_their_tokens(
    ranks: RankPool, spec: ModelSpec, work: Workload, mesh: Mesh
) -> None:
    alone = ranks.run(flux_output, spec, plan_for(spec, Mesh(), work), timeout_s=600)[0]
    plan = plan_for(spec, mesh, work)
    results = ranks.run(flux_output, spec, plan, batched_ids=True, timeout_s=600)
    assert furthest(alone, results) <= EXACT


def test_a_call_gets_what_its_family_takes() -> None:
    flux, sd3 = small_flux(), small_sd3()
    size = {"height": 28, "width": 36, "num_inference_steps": 3}
    assert call_arguments(flux, workload(passes=1)) == size | {
        "guidance_scale": 3.5,
        "max_sequence_length": 7,
    }
    assert call_arguments(sd3, workload()) == size | {"guidance_scale": 7.0}
    assert call_arguments(sd3, workload(passes=1)) == size | {"guidance_scale": 1.0}


def test_random_weights_are_the_same_in_every_dtype(spec: ModelSpec) -> None:
    exact, half = (
        load_pipeline(spec, None, torch.device("cpu"), dtype) for dtype in ("float32", "bfloat16")
    )
    for part in ("transformer", "vae"):
        weights = getattr(exact, part).state_dict()
        for name, cast in getattr(half, part).state_dict().items():
            assert cast.dtype == torch.bfloat16
            assert torch.equal(weights[name].to(torch.bfloat16), cast), name
