"""On two GPUs: the self-test is steady and tells what is slower, and clocks and watches of calls
cost no graph.
"""

from collections.abc import Iterator

import pytest
import torch

from ditplan.profiles.fingerprint import RankSpeed, SelfTest
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import ExecutionPlan
from ditplan.runtime.admission.fit import gathered_facts
from ditplan.runtime.generation import _call
from ditplan.runtime.groups import RankContext
from ditplan.runtime.models.loading import load_pipeline, prompt_embeddings
from ditplan.runtime.native import parallelize
from ditplan.runtime.prepared import built_of
from ditplan.runtime.profiling.denoising_clock import DenoisingClock
from ditplan.runtime.profiling.live_steps import LiveSteps
from ditplan.runtime.ranks.pool import RankPool
from tests.distributed.small_models import plan_for, small_sd3, workload

pytestmark = pytest.mark.gpu
TIMEOUT_S = 300


@pytest.fixture(scope="module")
def gpus() -> Iterator[RankPool]:
    """Two ranks with a GPU each."""
    with RankPool(None, 2, "cuda") as pool:
        yield pool


def test_the_self_test_is_steady_and_tells_what_is_slower(gpus: RankPool) -> None:
    plan = plan_for(small_sd3(), Mesh(cfg=2), workload(dtype="bfloat16"))
    facts, link = gpus.run(gathered_facts, (0, 1), timed=True, timeout_s=TIMEOUT_S)[0]
    assert link is not None
    made_here = plan.fingerprint.as_found(facts, (link,))
    assert made_here.self_test is not None
    assert {"torch", "nccl", "driver", "diffusers"} <= made_here.software.keys()
    for _ in range(5):
        again, link = gpus.run(gathered_facts, (0, 1), timed=True, timeout_s=TIMEOUT_S)[0]
        assert made_here.mismatches(again, link) == ()
    fast = [
        RankSpeed(launch_s=one.launch_s / 1.8, block_s=one.block_s / 1.8)
        for one in made_here.self_test.ranks
    ]
    collective_s = made_here.self_test.collective_s
    assert collective_s is not None
    test = SelfTest(ranks=tuple(fast), collective_s=collective_s / 1.8)
    faster = made_here.model_copy(update={"self_test": test})
    named = {one.name for one in faster.mismatches(again, link)}
    assert named == {
        *(f"rank {rank}: {what}" for rank in range(2) for what in ("launch rate", "block")),
        "collective",
    }


def captures(context: RankContext, spec: ModelSpec, plan: ExecutionPlan) -> tuple[list[int], int]:
    """How many graphs there were after each call, the later ones timed; and steps seen in those."""
    pipeline = load_pipeline(spec, None, context.device, plan.workload.dtype)
    live, clock = LiveSteps(pipeline, plan, context), DenoisingClock(context.device)
    words = prompt_embeddings(spec, plan.workload, context.device, seed=1)
    built, counts = built_of(pipeline.transformer, context), []
    with parallelize(pipeline, plan, context, live.watching):
        for number in range(3):
            if number:
                with clock.watching(pipeline):
                    _call(pipeline, spec, plan.workload, words, "latent", 0, plan.workload.steps)
                assert clock.seconds() > 0
            else:
                _call(pipeline, spec, plan.workload, words, "latent", 0, plan.workload.steps)
            counts.append(built.captures)
    torch.cuda.synchronize(context.device)
    live.read()
    return counts, live._watches["denoising"].seen


@pytest.mark.parametrize("mesh", [Mesh(), Mesh(cfg=2), Mesh(ulysses=2)], ids=str)
def test_a_timed_or_watched_call_captures_no_graph_again(gpus: RankPool, mesh: Mesh) -> None:
    plan = plan_for(small_sd3(), mesh, workload(dtype="bfloat16", steps=6)).configured(mode="graph")
    for counts, seen in gpus.run(captures, small_sd3(), plan, timeout_s=TIMEOUT_S)[: mesh.size]:
        assert counts == [1, 1, 1]
        assert seen == 2 * 5
