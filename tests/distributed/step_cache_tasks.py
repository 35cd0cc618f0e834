"""What the tests of step caches ask of ranks."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from diffusers import TaylorSeerCacheConfig

from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import ExecutionPlan
from ditplan.runtime.groups import RankContext
from ditplan.runtime.native import parallelize
from ditplan.testing.on_ranks import latents_of_call
from tests.distributed.rank_tasks import pipeline_of


@contextmanager
def with_cache_of_diffusers(pipeline: Any, **config: Any) -> Iterator[None]:
    """A copy of the transformer with a cache of its user: disabling one leaves forwards behind."""
    own = pipeline.transformer
    pipeline.transformer = deepcopy(own)
    pipeline.transformer.enable_cache(TaylorSeerCacheConfig(**config))
    try:
        yield
    finally:
        pipeline.transformer = own


def two_calls(
    context: RankContext, spec: ModelSpec, plan: ExecutionPlan
) -> tuple[list[torch.Tensor], int]:
    """The final latents of two calls of the pipeline, and how often blocks ran in both."""
    pipeline, ran = pipeline_of(context, spec), 0

    def count(*_: object) -> None:
        nonlocal ran
        ran += 1

    hook = pipeline.transformer.transformer_blocks[0].register_forward_hook(count)
    try:
        with parallelize(pipeline, plan, context):
            if context.rank not in plan.configuration.placement:
                return [], 0
            return [latents_of_call(pipeline, spec, plan.workload) for _ in range(2)], ran
    finally:
        hook.remove()


def latents_of_diffusers(
    context: RankContext, spec: ModelSpec, plan: ExecutionPlan
) -> torch.Tensor:
    """The final latents of diffusers' own cache of the last layer, on one device."""
    pipeline, cache = pipeline_of(context, spec), plan.configuration.step_cache
    assert cache is not None
    with with_cache_of_diffusers(
        pipeline,
        cache_interval=cache.interval,
        disable_cache_before_step=cache.full_steps,
        max_order=cache.order,
        taylor_factors_dtype=torch.float32,
        use_lite_mode=True,
    ):
        return latents_of_call(pipeline, spec, plan.workload)


def refused_beside_another_cache(
    context: RankContext, spec: ModelSpec, plan: ExecutionPlan
) -> None:
    """Puts a plan in force on a transformer whose user has enabled a cache."""
    pipeline = pipeline_of(context, spec)
    with with_cache_of_diffusers(pipeline):
        parallelize(pipeline, plan, context).close()
