"""Transport between stages on GPUs of one host that can't write into each other's memory.

The one GPU copies into memory of the host and sets a flag there, for which a stream of the other
waits before it copies from there. Copy engines do all of it; `peer_link.py` says why no kernel
does.
"""

import mmap
import os
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist

from ditplan.runtime.transport.collective_link import Arriving, Outbox
from ditplan.runtime.transport.copy_engine import pin, set_flag, unpin, wait_for_flag

ROOM = 1 << 40
"""Bytes of a shared file, which has memory only where something was written."""

PAGE = mmap.PAGESIZE


@dataclass
class _Slot:
    """Memory of the host for what is sent under a name, behind a page for the flag that counts it.

    Both ends have it mapped; `here` is the target's, on its GPU.
    """

    memory: torch.Tensor
    host: torch.Tensor
    flag: int
    here: torch.Tensor | None
    count: int = 0


class HostLink:
    """A link between GPUs of one host through its memory.

    Slots follow each other in the order in which names are first sent, in which they are first
    asked for too.
    """

    def __init__(
        self, group: dist.ProcessGroup, source: int, target: int, device: torch.device
    ) -> None:
        """`source` and `target` are global ranks; both call it.

        Raises:
            OSError: the target may not open what the source shares, as in another container.
        """
        self._group, self._source = group, dist.get_group_rank(group, source)
        self._is_target = dist.get_rank() == target
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._outbox = Outbox()
        self._slots: dict[tuple[Hashable, ...], _Slot] = {}
        self._file: int | None = shared_file(group, self._source)
        self._end = PAGE

    def send(self, name: Hashable, tensor: torch.Tensor) -> None:
        """As `P2PLink`."""
        self._outbox.make_room()
        tensor = tensor.contiguous()
        slot = self._slot(name, tuple(tensor.shape), tensor.dtype)
        slot.count += 1
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            slot.host.copy_(tensor, non_blocking=True)
        set_flag(slot.flag, slot.count, self._stream)
        self._outbox.add(tensor, self._stream.record_event().synchronize)

    def begin(self, name: Hashable, shape: tuple[int, ...], dtype: torch.dtype) -> Arriving:
        """As `P2PLink`."""
        slot = self._slot(name, tuple(shape), dtype)
        assert slot.here is not None
        slot.count += 1
        wait_for_flag(slot.flag, slot.count, self._stream)
        with torch.cuda.stream(self._stream):
            slot.here.copy_(slot.host, non_blocking=True)
        return _Copied(slot.here, self._stream.record_event())

    def drain(self) -> None:
        """As `P2PLink`."""
        self._outbox.drain()

    def clear(self) -> None:
        """As `P2PLink`."""
        if self._slots:
            torch.cuda.synchronize(self._device)
        for slot in self._slots.values():
            unpin(slot.memory.data_ptr())
        self._slots.clear()
        if self._file is not None:
            os.close(self._file)
            self._file, self._end = None, PAGE

    def _slot(self, name: Hashable, shape: tuple[int, ...], dtype: torch.dtype) -> _Slot:
        """The memory for what is sent under a name; both ends make it when they first want it."""
        key = (name, shape, dtype)
        if key in self._slots:
            return self._slots[key]
        if self._file is None:
            self._file = shared_file(self._group, self._source)
        size = torch.Size(shape).numel() * dtype.itemsize
        length = PAGE + -(-size // PAGE) * PAGE
        mapped = mmap.mmap(self._file, length, offset=self._end)
        self._end += length
        memory = torch.frombuffer(mapped, dtype=torch.uint8)
        slot = _Slot(
            memory=memory,
            host=memory[PAGE : PAGE + size].view(dtype).view(shape),
            flag=pin(memory.data_ptr(), length),
            here=torch.empty(shape, dtype=dtype, device=self._device) if self._is_target else None,
        )
        self._slots[key] = slot
        return slot


class _Copied:
    def __init__(self, tensor: torch.Tensor, there: torch.cuda.Event) -> None:
        self._tensor, self._there = tensor, there

    def wait(self) -> torch.Tensor:
        torch.cuda.current_stream(self._tensor.device).wait_event(self._there)
        return self._tensor


def shared_file(group: dist.ProcessGroup, source: int) -> int:
    """A descriptor of a file in memory that the `source`-th rank of a group shares with all others.

    Its first page is taken. Nothing of it is left when its descriptors are closed, as they are when
    processes die.

    Raises:
        OSError: on all ranks, if one of them can't open it.
    """
    is_source = dist.get_rank(group) == source
    shared: tuple[str, bytes] | None = None
    file = -1
    if is_source:
        file = os.memfd_create("ditplan")
        os.ftruncate(file, ROOM)
        shared = f"/proc/{os.getpid()}/fd/{file}", uuid4().bytes
        os.pwrite(file, shared[1], 0)
    path, mark = _of_all(shared, group)[source]
    error = None
    if not is_source:
        try:
            file = os.open(path, os.O_RDWR)
            if os.pread(file, len(mark), 0) != mark:
                error = f"{path} is another process's file"
        except OSError as refused:
            error = str(refused)
    errors = [found for found in _of_all(error, group) if found]
    if errors:
        if file >= 0:
            os.close(file)
        raise OSError(errors[0])
    return file


def _of_all(mine: object, group: dist.ProcessGroup) -> list[Any]:
    found: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(found, mine, group=group)
    return found
