"""On two GPUs in bf16, every mesh is as close to float32 as one GPU in bf16 is."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ditplan.profiles.catalog import find_model, shipped_weights
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import ExecutionPlan
from ditplan.runtime.groups import RankContext
from ditplan.runtime.launch import RankPool
from ditplan.runtime.native import parallelize
from ditplan.runtime.pipelines import load_pipeline
from tests.distributed.rank_tasks import denoise, same_start
from tests.distributed.small_models import plan_for

pytestmark = pytest.mark.gpu
MESHES = [Mesh(cfg=2), Mesh(ulysses=2), Mesh(ring=2)]
NOT_WORSE = 1.1


@pytest.fixture(scope="module")
def gpus() -> Iterator[RankPool]:
    with RankPool(None, 2, "cuda") as pool:
        yield pool


def latents_on_gpu(
    context: RankContext, spec: ModelSpec, weights: Path | None, plan: ExecutionPlan
) -> torch.Tensor | None:
    """Final latents of the plan on the CPU, from the same embeddings and noise in every dtype."""
    work = plan.workload
    key = (spec.config_hash, work.dtype)
    if context.kept.get("key") != key:
        context.kept.clear()
        context.kept["pipeline"] = load_pipeline(spec, weights, context.device, work.dtype)
        context.kept["key"] = key
    pipeline = context.kept["pipeline"]
    with parallelize(pipeline, plan, context):
        if context.rank not in plan.placement:
            return None
        words = same_start(spec, work, context.device)
        return denoise(pipeline, spec, work, words).float().cpu()


@pytest.mark.parametrize("name", ["sd3-tiny", "sd3"])
def test_bf16_on_two_gpus_is_as_close_to_float32_as_on_one(
    gpus: RankPool, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, weights = find_model(name), shipped_weights(name)
    work = spec.defaults.model_copy(update={"steps": 8, "dtype": "float32"})

    def run(mesh: Mesh, dtype: str) -> torch.Tensor:
        plan = plan_for(spec, mesh, work.model_copy(update={"dtype": dtype}))
        found = gpus.run(latents_on_gpu, spec, weights, plan, timeout_s=300)
        assert found[0] is not None
        return found[0]

    exact = run(Mesh(), "float32")
    one = float((run(Mesh(), "bfloat16") - exact).norm() / exact.norm())
    report = [f"relative L2 distance to float32 of {name} in bf16: one GPU {one:.5f}"]
    for mesh in MESHES:
        two = float((run(mesh, "bfloat16") - exact).norm() / exact.norm())
        report.append(f"{mesh} {two:.5f}, {two / one:.3f} of one GPU's")
        assert two <= NOT_WORSE * one, report
    with capsys.disabled():
        sys.stdout.write("\n" + "\n  ".join(report) + "\n")
