"""Timing the denoising loop of a pipeline's own call."""

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from ditplan.runtime.in_force import PASSING
from ditplan.runtime.takeover import names_arguments, replaced


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

        def started(_inputs: dict[str, Any]) -> None:
            if self._first is None:
                self._first = mark(self._device)

        def stepped() -> None:
            self._last = mark(self._device)
            self.steps += 1

        with watching_steps(pipeline, started, stepped):
            yield

    def seconds(self) -> float:
        """Duration of the loop that was watched; waits for the device."""
        if self._first is None or self._last is None:
            raise RuntimeError("no denoising loop was watched")
        if self._device.type == "cuda":
            self._last.synchronize()
            return float(self._first.elapsed_time(self._last)) / 1e3
        return float(self._last - self._first)


def mark(device: torch.device) -> Any:
    """This moment on a device: seconds on a CPU, an event on a GPU, which isn't waited for."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


@contextmanager
def watching_steps(
    pipeline: Any, started: Callable[[dict[str, Any]], None], stepped: Callable[[], None]
) -> Iterator[None]:
    """Calls `started` with the inputs of each call of the transformer before it is made, and
    `stepped` after each step of the scheduler.
    """
    scheduler, named = pipeline.scheduler, names_arguments(pipeline.transformer)
    taken_over = vars(scheduler).get("step")

    @functools.wraps(type(scheduler).step)
    def step(*args: Any, **kwargs: Any) -> Any:
        # looked up when called: a plan may give the scheduler another class meanwhile
        own = taken_over or functools.partial(type(scheduler).step, scheduler)
        result = own(*args, **kwargs)
        stepped()
        return result

    def begun(_module: Any, args: Any, kwargs: Any) -> None:
        started(named(*args, **kwargs))

    # else a plan in force would take it for a change and be put in force anew
    vars(begun)[PASSING] = True
    with ExitStack() as undo:
        hook = pipeline.transformer.register_forward_pre_hook(begun, prepend=True, with_kwargs=True)
        undo.callback(hook.remove)
        undo.enter_context(replaced(scheduler, "step", step))
        yield
