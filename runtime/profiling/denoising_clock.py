"""Timing the denoising loop of a pipeline's own call."""

import functools
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from ditplan.runtime.takeover import replaced


class DenoisingClock:
    """Measures from the transformer's first call to the scheduler's last step, by device clock.

    Nothing is synchronized inside the loop.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._first: Any = None
        self._last: Any = None
        self.steps = 0

    @contextmanager
    def watching(self, pipeline: Any) -> Iterator[None]:
        """Watches one call of the pipeline."""
        self._first, self._last, self.steps = None, None, 0
        scheduler = pipeline.scheduler
        taken_over = vars(scheduler).get("step")

        @functools.wraps(type(scheduler).step)
        def step(*args: Any, **kwargs: Any) -> Any:
            # looked up when called: a plan may give the scheduler another class meanwhile
            own = taken_over or functools.partial(type(scheduler).step, scheduler)
            result = own(*args, **kwargs)
            self._last = self._mark()
            self.steps += 1
            return result

        def started(_module: Any, _args: Any) -> None:
            if self._first is None:
                self._first = self._mark()

        with ExitStack() as undo:
            undo.callback(
                pipeline.transformer.register_forward_pre_hook(started, prepend=True).remove
            )
            undo.enter_context(replaced(scheduler, "step", step))
            yield

    def seconds(self) -> float:
        """Duration of the loop that was watched; waits for the device."""
        if self._first is None or self._last is None:
            raise RuntimeError("no denoising loop was watched")
        if self._device.type == "cuda":
            self._last.synchronize()
            return float(self._first.elapsed_time(self._last)) / 1e3
        return float(self._last - self._first)

    def _mark(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event
