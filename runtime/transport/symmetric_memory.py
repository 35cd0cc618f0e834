"""Memory of a GPU into which the other GPUs of a group can write: PyTorch's symmetric memory."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symmetric_memory


def allocate(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device, group: dist.ProcessGroup
) -> tuple[torch.Tensor, Any]:
    """This rank's part, and torch's handle to those of all ranks; collective over the group.

    What others write to it from now on stays there.
    """
    here = symmetric_memory.empty(tuple(shape), dtype=dtype, device=device)
    # torch 2.11 zeroes the memory, flags included, on its default stream and doesn't wait: behind
    # other work that comes after a faster rank's first signal, and who waits for it waits for ever
    torch.cuda.default_stream(device).synchronize()
    handle: Any = symmetric_memory.rendezvous(here, group.group_name)
    return here, handle
