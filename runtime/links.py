"""Point-to-point transport between the stages of a pipeline, in flight while others compute."""

from typing import Any

import torch
import torch.distributed as dist


class Link:
    """One direction from one rank to another, with a process group of its own.

    Both ends must ask in the same order for tensors of the same shapes. On GPUs transport runs on a
    stream of its own: what is sent waits for what computed it, what is received for nothing.
    """

    def __init__(
        self, group: dist.ProcessGroup, source: int, target: int, device: torch.device
    ) -> None:
        """`source` and `target` are global ranks."""
        self._group, self._source, self._target = group, source, target
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._sent: list[tuple[Any, torch.Tensor]] = []

    def connect(self, rank: int) -> None:
        """Sends something tiny and waits for it; both ends call it.

        NCCL connects at the first transfer, and blocks until the other end does: in the middle of
        a pipeline that could be never.
        """
        if rank == self._source:
            self.send(torch.zeros(1, device=self._device))
            self.drain()
        else:
            self.begin((1,), torch.float32).wait()

    def send(self, tensor: torch.Tensor) -> None:
        """Sends a tensor off and doesn't wait."""
        self._sent = [(work, held) for work, held in self._sent if not work.is_completed()]
        tensor = tensor.contiguous()
        if self._stream is None:
            work = dist.isend(tensor, self._target, self._group)
        else:
            self._stream.wait_stream(torch.cuda.current_stream(tensor.device))
            tensor.record_stream(self._stream)
            with torch.cuda.stream(self._stream):
                work = dist.isend(tensor, self._target, self._group)
        self._sent.append((work, tensor))

    def begin(self, shape: tuple[int, ...], dtype: torch.dtype) -> "Arriving":
        """Asks for the next tensor and doesn't wait."""
        if self._stream is None:
            made = torch.empty(shape, dtype=dtype, device=self._device)
            return Arriving(made, dist.irecv(made, self._source, self._group), None)
        with torch.cuda.stream(self._stream):
            made = torch.empty(shape, dtype=dtype, device=self._device)
            work = dist.irecv(made, self._source, self._group)
        return Arriving(made, work, self._stream)

    def drain(self) -> None:
        """Waits until all that was sent has gone."""
        for work, _ in self._sent:
            work.wait()
        self._sent.clear()


class Arriving:
    """A tensor that is on its way."""

    def __init__(self, tensor: torch.Tensor, work: Any, stream: torch.cuda.Stream | None) -> None:
        self._tensor, self._work, self._stream = tensor, work, stream

    def wait(self) -> torch.Tensor:
        """The tensor, once it is there: on GPUs what follows on the stream waits, not the host."""
        if self._stream is None:
            self._work.wait()
            return self._tensor
        now = torch.cuda.current_stream(self._tensor.device)
        with torch.cuda.stream(self._stream):
            self._work.wait()
        now.wait_stream(self._stream)
        self._tensor.record_stream(now)
        return self._tensor
