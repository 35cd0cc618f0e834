"""Collectives on tensors along a mesh axis, for any sizes."""

from collections.abc import Sequence

import torch
import torch.distributed as dist

from ditplan.runtime.groups import AxisGroup


def all_gather_uneven(
    tensor: torch.Tensor, dim: int, sizes: Sequence[int], group: AxisGroup
) -> torch.Tensor:
    """Every rank's share of a tensor, put together along `dim` in the order of the group's ranks.

    `(..., sizes[group.index], ...) -> (..., sum(sizes), ...)`. Smaller shares are padded for the
    transport, since gloo and NCCL gather equal pieces only.
    """
    largest = max(sizes)
    if not largest:
        return tensor
    moved = tensor.movedim(dim, 0)
    if moved.shape[0] < largest:
        moved = torch.cat([moved, moved.new_zeros(largest - moved.shape[0], *moved.shape[1:])])
    gathered = moved.new_empty(group.size * largest, *moved.shape[1:])
    dist.all_gather_into_tensor(gathered, moved.contiguous(), group=group.group)
    chunks = dict(zip(group.order, torch.split(gathered, largest), strict=True))
    return torch.cat([chunks[i][:size] for i, size in enumerate(sizes)]).movedim(0, dim)
