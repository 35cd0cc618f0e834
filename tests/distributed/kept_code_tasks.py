"""What the test of kept code asks of ranks."""

from typing import NamedTuple

import torch
from torch._dynamo.utils import counters

from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import ExecutionPlan
from ditplan.runtime.compilation.kept_code import MISSES, kept_code
from ditplan.runtime.groups import RankContext
from ditplan.runtime.native import parallelize
from tests.distributed.rank_tasks import denoise, pipeline_of, same_start


class Made(NamedTuple):
    """Final latents, how often torch had no code for a graph, and how often it took kept code."""

    latents: torch.Tensor
    misses: int
    hits: int


def made_with_kept_code(context: RankContext, spec: ModelSpec, plan: ExecutionPlan) -> Made:
    """A plan's latents, in a process that has compiled nothing before."""
    pipeline = pipeline_of(context, spec)
    words = same_start(spec, plan.workload, context.device)
    with parallelize(pipeline, plan, context), kept_code(plan, context):
        latents = denoise(pipeline, spec, plan.workload, words)
    misses = sum(counters[group][name] for group, name in MISSES)
    return Made(latents, misses, counters["aot_autograd"]["autograd_cache_hit"])
