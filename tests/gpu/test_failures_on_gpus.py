"""What fails on one of two GPUs fails on both, and the next call is right, by NCCL."""

from collections.abc import Iterator

import pytest
import torch

from ditplan.profiles.mesh import Mesh
from ditplan.runtime.ranks.pool import RankPool
from tests.distributed.agreement_tasks import alone, odd_call, without_generator
from tests.distributed.small_models import plan_for, small_sd3, workload
from tests.distributed.test_agreement import BETWEEN_STEPS, NOT_GIVEN_THE_SAME

pytestmark = pytest.mark.gpu
CLOSE = 5e-3
TIMEOUT_S = 300
"""Kernels round differently on each shape, so bits aren't compared."""


@pytest.fixture(scope="module")
def gpus() -> Iterator[RankPool]:
    """Two ranks with a GPU each."""
    with RankPool(None, 2, "cuda") as pool:
        yield pool


@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize("mesh", [Mesh(cfg=2), Mesh(ring=2), Mesh(ulysses=2)], ids=str)
def test_ranks_agree_on_calls_and_fail_together(gpus: RankPool, mesh: Mesh, mode: str) -> None:
    spec = small_sd3()
    plan = plan_for(spec, mesh, workload(steps=4)).configured(mode=mode)
    plan = plan.model_copy(update={"fallback": "refuse"})
    odd = [*NOT_GIVEN_THE_SAME, *BETWEEN_STEPS]
    if mode == "eager" and mesh.ulysses == 1:
        # GPUs that wait for flags in each other's memory can't be woken
        odd += ["out_of_memory"]
    wanted = gpus.run(alone, spec, plan, timeout_s=TIMEOUT_S)[0]
    first, second = gpus.run(odd_call, spec, plan, odd, timeout_s=TIMEOUT_S)
    for name, one, other in zip(odd, first, second, strict=True):
        assert isinstance(one[0], str), name
        assert one[0] == other[0], name
        for _, good in (one, other):
            assert isinstance(good, torch.Tensor), f"after {name}: {good}"
            assert float((good - wanted).abs().max()) <= CLOSE, f"after {name}"


def test_both_gpus_draw_the_first_one_s_noise(gpus: RankPool) -> None:
    spec = small_sd3()
    plan = plan_for(spec, Mesh(ulysses=2), workload(steps=4))
    results = gpus.run(without_generator, spec, plan, (3, 4), timeout_s=TIMEOUT_S)
    for wanted, found, _, _ in results:
        assert float((found - wanted).abs().max()) <= CLOSE
