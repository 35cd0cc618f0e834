"""A rank that is slowed while it serves is noticed by every rank of its plan."""

import time
from dataclasses import asdict
from typing import Any

import torch

from ditplan.profiles.family import family_of
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import ExecutionPlan, Measurement
from ditplan.runtime.blocks import block_paths
from ditplan.runtime.generation import _call
from ditplan.runtime.groups import RankContext
from ditplan.runtime.models.loading import load_pipeline, prompt_embeddings
from ditplan.runtime.native import parallelize
from ditplan.runtime.profiling.drift import DriftReport
from ditplan.runtime.profiling.live_steps import LiveSteps
from ditplan.runtime.ranks.pool import RankPool
from tests.distributed.small_models import plan_for, small_sd3, workload

STEPS, MOST_S, SLEEP_S = 12, 0.2, 0.4


def reports_of_a_slow_rank(
    context: RankContext, spec: ModelSpec, plan: ExecutionPlan, slow: int
) -> list[dict[str, Any]]:
    """What each rank is told while one of them sleeps in its blocks, from the second call on."""
    pipeline = load_pipeline(spec, None, context.device, "float32")
    model, sleep_s = pipeline.transformer, 0.0
    first = model.get_submodule(block_paths(model, family_of(type(model).__name__))[0])
    first.register_forward_pre_hook(lambda *_: time.sleep(sleep_s))
    told: list[DriftReport] = []
    live = LiveSteps(pipeline, plan, context, told.append)
    words = prompt_embeddings(spec, plan.workload, torch.device("cpu"), seed=1)
    with parallelize(pipeline, plan, context, live.watching):
        if context.rank in plan.configuration.placement:
            _call(pipeline, spec, plan.workload, words, "latent", 0, 2)
            sleep_s = SLEEP_S if context.rank == slow else 0.0
            _call(pipeline, spec, plan.workload, words, "latent", 0, STEPS)
    return [asdict(one) for one in told]


def test_a_slowed_rank_is_reported_within_twenty_steps(ranks: RankPool) -> None:
    spec, work = small_sd3(), workload(steps=STEPS)
    run = Measurement(
        latency_s=STEPS * MOST_S / 2,
        runs_s=(STEPS * MOST_S / 1.1,),
        measured_on="2026-01-02",
        devices="2 x CPU",
    )
    plan = plan_for(spec, Mesh(ulysses=2), work).model_copy(update={"measurement": run})
    told = ranks.run(reports_of_a_slow_rank, spec, plan, 1, timeout_s=600)
    assert told[2:] == [[], []]
    for rank, reports in enumerate(told[:2]):
        first = next(one for one in reports if one["stage"] == "denoising")
        assert (first["rank"], first["has_ended"]) == (rank, False)
        assert first["seen"] <= 20
        assert first["seconds"] >= SLEEP_S
