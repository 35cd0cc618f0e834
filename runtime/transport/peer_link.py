"""Transport between stages on GPUs of one host by their copy engines.

A kernel of NCCL that waits for the other end holds a multiprocessor all the while, and a matrix
product that counts on having all of them takes up to 1.6 times as long. Here the one GPU copies
into the other's memory and then sets a flag there, for which that one's stream waits: no kernel.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from ditplan.runtime.transport.collective_link import Arriving, Outbox
from ditplan.runtime.transport.copy_engine import StridedRows, copy_rows, set_flag, wait_for_flag
from ditplan.runtime.transport.symmetric_memory import allocate


@dataclass
class _Inbox:
    """Memory of the target that the source writes to, and the flag that counts what was written.

    Both have the target's memory mapped; `here` is this rank's own part, which only the target
    reads.
    """

    here: torch.Tensor
    handle: Any
    address: int
    flag: int
    count: int = 0


class PeerLink:
    """A link between GPUs that can write into each other's memory."""

    def __init__(
        self, group: dist.ProcessGroup, source: int, target: int, device: torch.device
    ) -> None:
        """`source` and `target` are global ranks."""
        self._group, self._device = group, device
        self._target = dist.get_group_rank(group, target)
        self._stream = torch.cuda.Stream(device)
        self._outbox = Outbox()
        self._inboxes: dict[tuple[Hashable, ...], _Inbox] = {}

    def send(self, name: Hashable, tensor: torch.Tensor) -> None:
        """As `P2PLink`."""
        self._outbox.make_room()
        tensor = tensor.contiguous()
        inbox = self._inbox(name, tensor.shape, tensor.dtype)
        inbox.count += 1
        size = tensor.numel() * tensor.element_size()
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        source, target = StridedRows(tensor.data_ptr(), size), StridedRows(inbox.address, size)
        copy_rows(source, target, size, 1, self._stream)
        set_flag(inbox.flag, inbox.count, self._stream)
        self._outbox.add(tensor, self._stream.record_event().synchronize)

    def begin(self, name: Hashable, shape: tuple[int, ...], dtype: torch.dtype) -> Arriving:
        """As `P2PLink`."""
        inbox = self._inbox(name, shape, dtype)
        inbox.count += 1
        return _Written(inbox.here, inbox.flag, inbox.count)

    def drain(self) -> None:
        """As `P2PLink`."""
        self._outbox.drain()

    def clear(self) -> None:
        """As `P2PLink`."""
        if self._inboxes:
            # unlike torch's own memory this is gone at once
            torch.cuda.synchronize(self._device)
            self._inboxes.clear()

    def _inbox(self, name: Hashable, shape: tuple[int, ...], dtype: torch.dtype) -> _Inbox:
        """The memory for what is sent under a name; both ends make it when they first want it."""
        key = (name, tuple(shape), dtype)
        if key not in self._inboxes:
            here, handle = allocate(shape, dtype, self._device, self._group)
            self._inboxes[key] = _Inbox(
                here,
                handle,
                handle.buffer_ptrs[self._target],
                handle.signal_pad_ptrs[self._target],
            )
        return self._inboxes[key]


class _Written:
    def __init__(self, tensor: torch.Tensor, flag: int, count: int) -> None:
        self._tensor, self._flag, self._count = tensor, flag, count

    def wait(self) -> torch.Tensor:
        stream = torch.cuda.current_stream(self._tensor.device)
        wait_for_flag(self._flag, self._count, stream)
        return self._tensor
