"""What ranks do for `benchmarks.admission_cost`."""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import ExecutionPlan
from ditplan.runtime.admission import call_guard
from ditplan.runtime.admission.calls import Calls
from ditplan.runtime.admission.channel import Channel, Message, Point
from ditplan.runtime.groups import RankContext
from ditplan.runtime.models.loading import call_arguments, load_pipeline, prompt_embeddings
from ditplan.runtime.native import parallelize

WARM_UP = 3
CALLS = 5
PAIRS = 25
"""Calls with and without agreement, in turns."""


def meetings(context: RankContext) -> float:
    """The median time in seconds of a meeting of hosts."""
    channel, found = Channel(context, range(context.world_size)), []
    for _ in range(500):
        start = time.perf_counter()
        channel.exchange(Message(Point.STEP, 1))
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def calls(context: RankContext, spec: ModelSpec, plan: ExecutionPlan) -> dict[str, list[float]]:
    """Seconds of calls with and without agreement, in turns, and of the agreement's parts."""
    pipeline = load_pipeline(spec, None, context.device, plan.workload.dtype)
    words = prompt_embeddings(spec, plan.workload, context.device, seed=1)
    found: dict[str, list[float]] = {
        name: [] for name in ("with", "without", "begin", "first call", "later calls", "end")
    }

    def timed() -> float:
        _wait(context)
        start = time.perf_counter()
        with torch.no_grad():
            pipeline(
                **words,
                **call_arguments(spec, plan.workload),
                generator=torch.Generator("cpu").manual_seed(0),
                output_type="latent",
            )
        _wait(context)
        return time.perf_counter() - start

    with parallelize(pipeline, plan, context):
        for _ in range(WARM_UP):
            timed()
        with _parts(context, found):
            for _ in range(CALLS):
                timed()
        for _ in range(PAIRS):
            found["with"].append(timed())
            with _without():
                found["without"].append(timed())
    return found


def _wait(context: RankContext) -> None:
    if context.device.type == "cuda":
        torch.cuda.synchronize(context.device)


@contextmanager
def _without() -> Iterator[None]:
    """Calls on which ranks agree in nothing."""
    guard = call_guard.CallGuard

    def unasked(_self: Any, _model: Any, own: Any, inputs: dict[str, Any]) -> Any:
        return own(**inputs)

    with mock.patch.object(guard, "run", Calls.run), mock.patch.object(guard, "_stray", unasked):
        yield


@contextmanager
def _parts(context: RankContext, found: dict[str, list[float]]) -> Iterator[None]:
    """Times each meeting, the device's work for it included."""
    guard: Any = call_guard.CallGuard
    own_admit, own_end, own_noise = guard.admit, guard._end, guard._common_noise

    def admit(self: Any, inputs: dict[str, Any]) -> None:
        name = "later calls" if self._call.calls else "first call"
        _timed(found[name], lambda: own_admit(self, inputs))

    def end(self: Any, call: Any) -> None:
        _timed(found["end"], lambda: own_end(self, call))

    @contextmanager
    def noise(self: Any) -> Iterator[None]:
        entered = own_noise(self)
        _timed(found["begin"], entered.__enter__)
        try:
            yield
        finally:
            entered.__exit__(None, None, None)

    def _timed(into: list[float], act: Any) -> None:
        _wait(context)
        start = time.perf_counter()
        act()
        _wait(context)
        into.append(time.perf_counter() - start)

    with (
        mock.patch.object(guard, "admit", admit),
        mock.patch.object(guard, "_end", end),
        mock.patch.object(guard, "_common_noise", noise),
    ):
        yield
