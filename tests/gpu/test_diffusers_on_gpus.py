"""On two GPUs: plans run by diffusers' context parallelism, with rings and compiled blocks."""

from collections.abc import Iterator

import pytest
import torch

from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import ExecutionPlan
from ditplan.runtime.context_parallel import context_parallelize
from ditplan.runtime.groups import RankContext
from ditplan.runtime.models.loading import load_pipeline
from ditplan.runtime.ranks.pool import RankPool
from ditplan.testing.on_ranks import latents_of_call
from tests.distributed.small_models import plan_for, small_flux, workload

pytestmark = pytest.mark.gpu
NOT_WORSE = 1.2


@pytest.fixture(scope="module")
def gpus() -> Iterator[RankPool]:
    with RankPool(None, 2, "cuda") as pool:
        yield pool


def latents_by_diffusers(
    context: RankContext, spec: ModelSpec, plan: ExecutionPlan
) -> torch.Tensor | None:
    """Final latents of a plan, on the CPU; None on ranks that it doesn't use."""
    pipeline = load_pipeline(spec, None, context.device, plan.workload.dtype)
    with context_parallelize(pipeline, plan, context):
        if context.rank not in plan.configuration.placement:
            return None
        return latents_of_call(pipeline, spec, plan.workload).float().cpu()


@pytest.mark.parametrize("mesh", [Mesh(ulysses=2), Mesh(ring=2)], ids=str)
@pytest.mark.parametrize("mode", ["eager", "compile"])
@pytest.mark.parametrize(("heads", "height", "text"), [(4, 32, 8), (5, 28, 7)])
def test_bf16_is_as_close_to_float32_as_on_one_gpu(
    gpus: RankPool, mesh: Mesh, mode: str, heads: int, height: int, text: int
) -> None:
    spec = small_flux(num_attention_heads=heads)
    sizes = {"height": height, "passes": 1, "text_tokens": text}

    def run(mesh: Mesh, dtype: str, mode: str) -> torch.Tensor:
        plan = plan_for(spec, mesh, workload(**sizes, dtype=dtype)).configured(mode=mode)
        found: torch.Tensor | None = gpus.run(latents_by_diffusers, spec, plan, timeout_s=300)[0]
        assert found is not None
        return found

    exact = run(Mesh(), "float32", "eager")
    one = float((run(Mesh(), "bfloat16", mode) - exact).norm() / exact.norm())
    two = float((run(mesh, "bfloat16", mode) - exact).norm() / exact.norm())
    assert two <= NOT_WORSE * one, (two, one)
