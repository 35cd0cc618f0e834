"""Point-to-point transport between the stages of a pipeline, in flight while others compute."""

from collections import deque
from collections.abc import Callable, Hashable
from typing import Any, Protocol

import torch
import torch.distributed as dist

MOST_SENT = 4
"""Tensors that are on their way over a link before who sends more waits for the first of them: each
holds memory, and a host that launches graphs would be many steps ahead of its device."""


class Arriving(Protocol):
    """A tensor that is on its way."""

    def wait(self) -> torch.Tensor:
        """The tensor, once it is there: on GPUs what follows on the stream waits, not the host."""


class P2PLink(Protocol):
    """One direction from one rank to another.

    Both ends must send and ask in the same order for tensors of the same `name`, shape and dtype.
    There is one piece of memory for each: what is sent under a name must have been read before
    something else is sent under it.
    """

    def send(self, name: Hashable, tensor: torch.Tensor) -> None:
        """Sends a tensor off and doesn't wait for it, only for one that was sent long before."""

    def begin(self, name: Hashable, shape: tuple[int, ...], dtype: torch.dtype) -> Arriving:
        """Asks for a tensor and doesn't wait."""

    def drain(self) -> None:
        """Waits until all that was sent has gone."""

    def clear(self) -> None:
        """Gives the memory back; both ends call it, when nothing is on its way."""


class Outbox:
    """Tensors that are on their way: held until they have gone, so that nothing gets their memory
    meanwhile.
    """

    def __init__(self) -> None:
        self._sent: deque[tuple[Callable[[], Any], torch.Tensor]] = deque()

    def make_room(self) -> None:
        """Waits for the first of them if there are too many."""
        while len(self._sent) >= MOST_SENT:
            self._wait_for_first()

    def add(self, tensor: torch.Tensor, gone: Callable[[], Any]) -> None:
        """One more; `gone` waits until it has gone."""
        self._sent.append((gone, tensor))

    def drain(self) -> None:
        """Waits for all."""
        while self._sent:
            self._wait_for_first()

    def _wait_for_first(self) -> None:
        gone, _ = self._sent.popleft()
        gone()


class CollectiveLink:
    """A link by send and receive of a process group of its own; of any backend.

    On GPUs transport runs on a stream of its own: what is sent waits for what computed it, what is
    received for nothing.
    """

    def __init__(
        self, group: dist.ProcessGroup, source: int, target: int, device: torch.device
    ) -> None:
        """`source` and `target` are global ranks."""
        self._group, self._source, self._target = group, source, target
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._outbox = Outbox()
        self._inbox: dict[tuple[Hashable, ...], torch.Tensor] = {}

    def connect(self, rank: int) -> None:
        """Sends something tiny and waits for it; both ends call it.

        NCCL connects at the first transfer, and blocks until the other end does: in the middle of
        a pipeline that could be never.
        """
        if rank == self._source:
            self.send("connect", torch.zeros(1, device=self._device))
            self.drain()
        else:
            self.begin("connect", (1,), torch.float32).wait()

    def send(self, name: Hashable, tensor: torch.Tensor) -> None:
        """As `P2PLink`."""
        self._outbox.make_room()
        tensor = tensor.contiguous()
        if self._stream is None:
            self._outbox.add(tensor, self._sending(tensor).wait)
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            self._sending(tensor).wait()
            self._outbox.add(tensor, self._stream.record_event().synchronize)

    def begin(self, name: Hashable, shape: tuple[int, ...], dtype: torch.dtype) -> Arriving:
        """As `P2PLink`."""
        key = (name, shape, dtype)
        if key not in self._inbox:
            self._inbox[key] = torch.empty(shape, dtype=dtype, device=self._device)
        into = self._inbox[key]
        if self._stream is None:
            return _Received(into, dist.irecv(into, self._source, self._group), None)
        with torch.cuda.stream(self._stream):
            work = dist.irecv(into, self._source, self._group)
        return _Received(into, work, self._stream)

    def drain(self) -> None:
        """As `P2PLink`."""
        self._outbox.drain()

    def clear(self) -> None:
        """As `P2PLink`."""
        self._inbox.clear()

    def _sending(self, tensor: torch.Tensor) -> Any:
        return dist.isend(tensor, self._target, self._group)


class _Received:
    def __init__(self, tensor: torch.Tensor, work: Any, stream: torch.cuda.Stream | None) -> None:
        self._tensor, self._work, self._stream = tensor, work, stream

    def wait(self) -> torch.Tensor:
        if self._stream is None:
            self._work.wait()
            return self._tensor
        with torch.cuda.stream(self._stream):
            self._work.wait()
        torch.cuda.current_stream(self._tensor.device).wait_stream(self._stream)
        return self._tensor
