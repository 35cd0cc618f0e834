"""Timing calls on a device: how long it takes for them, and how long the host to launch them."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ditplan.runtime.compilation.cuda_graphs import capture_stream

TIME_FOR_A_PART_S = 0.25
# few enough that even unfused blocks fit the queue of a GPU, so that the host isn't held up
LAUNCHED_CALLS = 3


@dataclass(frozen=True)
class Timing:
    """Seconds of a call, several times; and of its launch, None where the device is the host."""

    runs: list[float]
    host_s: float | None

    @property
    def median_s(self) -> float:
        """The middle one of the runs."""
        return statistics.median(self.runs)


def time_call(call: Callable[[], Any], device: torch.device) -> Timing:
    """Times a call after a warm-up; short ones as the mean of calls in a row."""
    call()
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    once = time.perf_counter() - start
    rounds = max(3, min(15, round(TIME_FOR_A_PART_S / max(once, 1e-6))))
    calls = max(1, min(20, round(TIME_FOR_A_PART_S / rounds / max(once, 1e-6))))
    runs = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        synchronize(device)
        runs.append((time.perf_counter() - start) / calls)
    return Timing(runs, None if device.type == "cpu" else _launch_s(call, device))


def captured(call: Callable[[], Any], device: torch.device) -> Callable[[], None]:
    """The call as a CUDA graph: what is left of it is the device's work."""
    stream = capture_stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        call()
    synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        call()
    return graph.replay


def synchronize(device: torch.device) -> None:
    """Waits until a GPU has done what it was asked to; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _launch_s(call: Callable[[], Any], device: torch.device) -> float:
    """Host seconds of one call while the device lags behind."""
    fastest = float("inf")
    for _ in range(5):
        synchronize(device)
        start = time.perf_counter()
        for _ in range(LAUNCHED_CALLS):
            call()
        fastest = min(fastest, (time.perf_counter() - start) / LAUNCHED_CALLS)
    synchronize(device)
    return fastest
