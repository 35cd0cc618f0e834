"""What a rank on a CPU does when in a denoising loop, recorded by PyTorch's profiler.

Operators that run on the rank's own thread are computing; a collective is under way from when gloo
takes it to when it is done, and where nothing is computed meanwhile, the rank waits for it. What is
left is Python.
"""

import functools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from ditplan.profiles.errors import InputError, Setting
from ditplan.profiles.plan import ExecutionPlan
from ditplan.profiles.rank_run import Phase
from ditplan.runtime.profiling.denoising_clock import watching_steps
from ditplan.runtime.takeover import replaced

SHOWN_STEPS = 3
"""So many steps are recorded, as `simulate` shows."""

MARK, STEPPED = "ditplan: begins", "ditplan: stepped"
SCHEDULER = "scheduler"
ATTENTION = "scaled_dot_product"
UNDER_WAY = "gloo:"
COLLECTIVES = "c10d::"

CATEGORY_OF = (("all_to_all", "ulysses"), ("alltoall", "ulysses"), ("gather", "gather"))
"""By what is in a collective's name; others are a ring's."""

COMPUTES, ATTENDS, PYTHON = "compute", "attention", "launch"


def require_recordable(plan: ExecutionPlan, device: torch.device) -> None:
    """Refuses to record what this can't tell: kernels of a GPU run beside the host, and stages
    don't all know when a step ends.

    Raises:
        InputError: the rank is on a GPU, or the plan has stages.
    """
    if device.type != "cpu":
        raise InputError(
            Setting("trace"), ": phases are recorded of ranks on CPUs only; leave it out on GPUs"
        )
    if plan.configuration.pipefusion is not None:
        raise InputError(
            Setting("trace"), f": phases of stages aren't recorded ({plan.mesh}); leave it out"
        )


@dataclass(frozen=True)
class Interval:
    """Something from when to when, in microseconds of the profiler."""

    name: str
    start: float
    end: float


class PhaseRecorder:
    """Records the first steps of one call of a pipeline, on this rank."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._begun_s: float | None = None
        self._events: Sequence[Any] = ()

    @contextmanager
    def watching(self, pipeline: Any) -> Iterator[None]:
        """Watches one call; the profiler ends with it."""

        def started(_inputs: dict[str, Any]) -> None:
            if self._begun_s is None:
                # the first mark of all takes a millisecond, which the clock must not be off by
                with torch.profiler.record_function(STEPPED):
                    pass
                with torch.profiler.record_function(MARK):
                    self._begun_s = time.time()

        def stepped() -> None:
            with torch.profiler.record_function(STEPPED):
                pass

        cpu = [torch.profiler.ProfilerActivity.CPU]
        with (
            torch.profiler.profile(activities=cpu, acc_events=True) as profile,
            _scheduler_named(pipeline.scheduler),
            watching_steps(pipeline, started, stepped),
        ):
            yield
        self._events = profile.events()

    def phases(self) -> tuple[Phase, ...]:
        """What was done in the steps that are shown, in the host's time.

        Raises:
            RuntimeError: no loop was watched.
        """
        mark = next((one for one in self._events if one.name == MARK), None)
        if mark is None or self._begun_s is None:
            raise RuntimeError("no denoising loop was watched")
        begin = mark.time_range.start
        stepped = (one.time_range.start for one in self._events if one.name == STEPPED)
        ends = sorted(end for end in stepped if end > begin)[:SHOWN_STEPS]
        if not ends:
            raise RuntimeError("no step of the denoising loop was watched")
        own, attention, under_way = _sorted_out(self._events, mark.thread, (begin, ends[-1]))
        pieces = painted(own, attention, under_way, (begin, ends[-1]))
        told = [(one, False) for one in pieces] + [(one, True) for one in under_way]
        return tuple(
            self._phase(one, begin, ends, is_under_way=is_under_way) for one, is_under_way in told
        )

    def _phase(
        self, one: Interval, begin: float, ends: Sequence[float], *, is_under_way: bool
    ) -> Phase:
        """A piece in the host's time."""
        assert self._begun_s is not None
        return Phase(
            rank=self._rank,
            step=1 + sum(end <= one.start for end in ends),
            name=one.name,
            category=category_of(one.name),
            start_s=self._begun_s + (one.start - begin) / 1e6,
            end_s=self._begun_s + (one.end - begin) / 1e6,
            is_under_way=is_under_way,
        )


@contextmanager
def _scheduler_named(scheduler: Any) -> Iterator[None]:
    """The scheduler's steps have a name in what is recorded."""
    taken_over = vars(scheduler).get("step")

    @functools.wraps(type(scheduler).step)
    def step(*args: Any, **kwargs: Any) -> Any:
        own = taken_over or functools.partial(type(scheduler).step, scheduler)
        with torch.profiler.record_function(SCHEDULER):
            return own(*args, **kwargs)

    with replaced(scheduler, "step", step):
        yield


def _sorted_out(
    events: Sequence[Any], thread: int, span: tuple[float, float]
) -> tuple[list[Interval], list[Interval], list[Interval]]:
    """What the rank's own thread did in a span, what of it was attention, and the collectives that
    were under way.
    """
    own, attention, under_way = list[Interval](), list[Interval](), list[Interval]()
    for one in events:
        found = Interval(one.name, max(span[0], one.time_range.start), one.time_range.end)
        found = replace(found, end=min(span[1], found.end))
        if found.end <= found.start or one.name in (MARK, STEPPED):
            continue
        if one.name.startswith(UNDER_WAY):
            under_way.append(found)
        elif one.thread == thread and not one.is_async:
            if one.cpu_parent is None:
                own.append(found)
            if ATTENTION in one.name:
                attention.append(found)
    return own, attention, under_way


def category_of(name: str) -> str:
    """The part of a prediction that a piece belongs to."""
    if name in (COMPUTES, ATTENDS, PYTHON, SCHEDULER):
        return name
    return next((category for words, category in CATEGORY_OF if words in name), "ring")


def painted(
    own: Sequence[Interval],
    attention: Sequence[Interval],
    under_way: Sequence[Interval],
    span: tuple[float, float],
) -> list[Interval]:
    """What a rank does at each moment of a span, as pieces that touch and never overlap: a
    collective's call, the scheduler, attention, other computing, waiting for a collective, or
    Python.
    """
    named = (COLLECTIVES, SCHEDULER)
    calls = [one for one in own if one.name.startswith(named)]
    computing = [one for one in own if not one.name.startswith(named)]
    begin, end = span
    changes: list[tuple[float, int, int, str]] = []
    for layer, intervals in enumerate((calls, attention, computing, under_way)):
        for one in intervals:
            changes.append((max(begin, one.start), 1, layer, one.name))
            changes.append((min(end, one.end), -1, layer, one.name))
    active: list[dict[str, int]] = [{}, {}, {}, {}]
    pieces: list[Interval] = []
    before = begin
    for moment, by, layer, name in [*sorted(changes), (end, 0, 0, "")]:
        if moment > before:
            _append(pieces, Interval(_doing(active), before, moment))
            before = moment
        if by:
            left = active[layer].get(name, 0) + by
            active[layer] = {**active[layer], name: left}
            if not left:
                del active[layer][name]
    return pieces


def _doing(active: Sequence[dict[str, int]]) -> str:
    calls, attention, computing, under_way = active
    if calls:
        return next(iter(calls))
    if attention:
        return ATTENDS
    if computing:
        return COMPUTES
    return next(iter(under_way)) if under_way else PYTHON


def _append(pieces: list[Interval], piece: Interval) -> None:
    """Adds a piece, to the last one where both are the same."""
    if pieces and pieces[-1].name == piece.name:
        pieces[-1] = Interval(piece.name, pieces[-1].start, piece.end)
    else:
        pieces.append(piece)
