"""Events of a trace that Perfetto (ui.perfetto.dev) and chrome://tracing open, as `simulate` writes
them of a prediction and `run` of what ranks did.

Source: Trace Event Format, https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ditplan.profiles.configuration import Configuration
from ditplan.profiles.mesh import AXES
from ditplan.profiles.rank_run import Phase

RANKS, LINKS = "ranks", "links"
PROCESSES = {RANKS: 1, LINKS: 2}
FIRST_THREADS = {RANKS: 1000, LINKS: 1_000_000}
"""Perfetto takes threads of equal numbers for one, whatever their processes, and has none 0."""

RECORDED = "recorded"
"""In `otherData` of a trace of a run: no prediction."""

Event = dict[str, Any]
TraceRow = tuple[int, int, str]
"""Process, thread and name of a row."""


def trace_events(rows: Iterable[TraceRow], slices: Iterable[Event]) -> list[Event]:
    """All events of a trace: the names of its rows, and what they do."""
    return [*_names(rows), *slices]


def trace_text(events: Sequence[Event], facts: Event) -> str:
    """The file of a trace; `facts` stand in its `otherData`."""
    trace = {"traceEvents": events, "displayTimeUnit": "ms", "otherData": facts}
    return json.dumps(trace, separators=(",", ":")) + "\n"


def slice_event(
    row: TraceRow, name: str, category: str, span_s: tuple[float, float], step: int
) -> Event:
    """What a row does from when to when, in seconds; steps are counted from 1."""
    # both ends rounded alike, so that neighbours touch and never overlap
    start_ns, end_ns = round(span_s[0] * 1e9), round(span_s[1] * 1e9)
    process, thread, _ = row
    return {
        "ph": "X",
        "name": name,
        "cat": category,
        "pid": process,
        "tid": thread,
        "ts": start_ns / 1000,
        "dur": (end_ns - start_ns) / 1000,
        "args": {"step": step},
    }


def rank_row(rank: int, name: str) -> TraceRow:
    """The row of a rank."""
    return PROCESSES[RANKS], FIRST_THREADS[RANKS] + rank, name


def link_row(number: int, name: str) -> TraceRow:
    """The row of a class of links, or of a rank's exchanges."""
    return PROCESSES[LINKS], FIRST_THREADS[LINKS] + number, name


def rank_name(rank: int, configuration: Configuration, coordinate: tuple[int, ...]) -> str:
    """Such as `rank 5 (cfg 1, ring 2)`."""
    degrees = configuration.mesh.degrees
    split = [
        f"{axis} {index}"
        for axis, index, degree in zip(AXES, coordinate, degrees, strict=True)
        if degree > 1
    ]
    return f"rank {rank} ({', '.join(split)})" if split else f"rank {rank}"


def recorded_trace(
    configuration: Configuration, phases: Sequence[Phase], latency_s: float, title: str
) -> str:
    """What ranks did in a run: a row for each rank, and one for its exchanges on the way."""
    coordinates = dict(zip(configuration.placement, configuration.mesh.coordinates(), strict=True))
    rows = {
        (RANKS, rank): rank_row(rank, rank_name(rank, configuration, coordinate))
        for rank, coordinate in sorted(coordinates.items())
    }
    rows |= {
        (LINKS, rank): link_row(rank, f"exchanges of rank {rank}")
        for rank in sorted({phase.rank for phase in phases if phase.is_under_way})
    }
    first_s = min((phase.start_s for phase in phases), default=0.0)
    slices = (
        slice_event(
            rows[LINKS if phase.is_under_way else RANKS, phase.rank],
            phase.name,
            phase.category,
            (phase.start_s - first_s, phase.end_s - first_s),
            phase.step,
        )
        for phase in phases
    )
    facts = {
        "title": title,
        "plan": str(configuration),
        "latency_s": latency_s,
        "steps_shown": f"1 to {max((phase.step for phase in phases), default=0)}",
        "ranks": len(coordinates),
        RECORDED: True,
    }
    return trace_text(trace_events(rows.values(), slices), facts)


def _names(rows: Iterable[TraceRow]) -> Iterator[Event]:
    for name, process in PROCESSES.items():
        yield _metadata("process_name", process, 0, {"name": name})
        yield _metadata("process_sort_index", process, 0, {"sort_index": process})
    for process, thread, name in rows:
        yield _metadata("thread_name", process, thread, {"name": name})
        yield _metadata("thread_sort_index", process, thread, {"sort_index": thread})


def _metadata(name: str, process: int, thread: int, args: Event) -> Event:
    return {"ph": "M", "name": name, "pid": process, "tid": thread, "args": args}
