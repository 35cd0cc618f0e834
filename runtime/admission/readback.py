"""Numbers on their way from devices to the host, which does other things meanwhile."""

from collections.abc import Sequence

import torch


class Readback:
    """Tensors that nobody writes to any more, in the host's memory once they have come."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._coming = [one.detach().to("cpu", non_blocking=True) for one in tensors]
        devices = {one.device for one in tensors if one.is_cuda}
        self._events = [torch.cuda.current_stream(device).record_event() for device in devices]

    def tensors(self) -> list[torch.Tensor]:
        """All of them, in their order; waits for devices that haven't come so far yet."""
        for event in self._events:
            event.synchronize()
        return self._coming
