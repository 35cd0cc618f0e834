"""What runs on ranks."""

import inspect
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ditplan.backends import Prepared
from ditplan.profiles.errors import InputError

BATCHED = (
    "hidden_states",
    "encoder_hidden_states",
    "encoder_attention_mask",
    "pooled_projections",
    "timestep",
)
"""Arguments of the transformers' forwards that have a row for each sample of each pass."""

PATIENCE = timedelta(minutes=10)


def split(pipeline: Any, plan: Any, context: Any) -> Prepared:
    """Has each of the plan's ranks compute its half of every batch.

    Every rank of the world calls it; those that the plan doesn't use help to make the group.
    """
    placement = plan.configuration.placement
    if plan.mesh.size == 1:
        return Prepared(pipeline, lambda: None)
    group = dist.new_group(sorted(placement), timeout=PATIENCE)
    if context.rank not in placement:
        return Prepared(pipeline, lambda: None)
    model = pipeline.transformer
    own, half = model.forward, placement.index(context.rank)
    first_comes_first = placement[0] < placement[1]

    def forward(*args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(own).bind(*args, **kwargs).arguments
        samples = given["hidden_states"].shape[0]
        if samples % 2:
            raise InputError(
                f"a batch of {samples} has no two passes of guidance: give a negative prompt and "
                "a guidance scale above 1, or close the plan"
            )
        rows = slice(half * samples // 2, (half + 1) * samples // 2)
        mine = {
            name: value[rows]
            if name in BATCHED and isinstance(value, torch.Tensor) and value.ndim
            else value
            for name, value in given.items()
        }
        sample = own(**mine)[0].contiguous()
        halves = [torch.empty_like(sample) for _ in placement]
        dist.all_gather(halves, sample, group=group)
        return (torch.cat(halves if first_comes_first else halves[::-1]),)

    model.forward = forward

    def close() -> None:
        if vars(model).pop("forward", None) is not None:
            dist.destroy_process_group(group)

    return Prepared(pipeline, close)
