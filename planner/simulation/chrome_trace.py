"""A timeline as a trace that Perfetto (ui.perfetto.dev) and chrome://tracing open.

Source: Trace Event Format, https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from ditplan.planner.simulation.simulator import Row
from ditplan.planner.simulation.timeline import Timeline
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.mesh import AXES

MOST_RANKS = 64
"""With more ranks than this those that do the same share a row."""

RANKS, LINKS = "ranks", "links"
PROCESSES = {RANKS: 1, LINKS: 2}
FIRST_THREADS = {RANKS: 1000, LINKS: 1_000_000}
"""Perfetto takes threads of equal numbers for one, whatever their processes, and has none 0."""

Event = dict[str, Any]


def chrome_trace(timeline: Timeline, candidate: Configuration, title: str) -> str:
    """The first steps as JSON: a process `ranks` with a row for each rank, or for each kind of rank
    where there are many, and a process `links` with a row for each class of links.

    Times are microseconds. What is shown, and the seconds of all steps, stands in `otherData`.
    """
    threads = _threads(timeline, candidate)
    events = [*_names(threads), *_slices(timeline, threads)]
    ranks = sum(len(ranks) for ranks in timeline.ranks.values())
    shown = f"1 to {timeline.shown_steps} of {timeline.steps}"
    trace = {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {
            "title": title,
            "plan": str(candidate),
            "latency_s": timeline.total_s,
            "steps_shown": shown,
            "ranks": ranks,
            "ranks_shown": "each" if ranks <= MOST_RANKS else "one of each kind",
        },
    }
    return json.dumps(trace, separators=(",", ":")) + "\n"


Threads = dict[Row, Sequence[tuple[int, int, str]]]
"""Of each row of a timeline: process, thread and name of what is drawn for it."""


def _threads(timeline: Timeline, candidate: Configuration) -> Threads:
    found: Threads = {}
    coordinates = dict(zip(candidate.placement, candidate.mesh.coordinates(), strict=True))
    many = len(coordinates) > MOST_RANKS
    first = FIRST_THREADS[RANKS]
    for row, ranks in timeline.ranks.items():
        if many:
            name = f"{row.name}: {len(ranks)} ranks from {ranks[0]} on"
            found[row] = [(PROCESSES[RANKS], first + ranks[0], name)]
        else:
            names = [_name_of(rank, candidate, coordinates[rank]) for rank in ranks]
            found[row] = [
                (PROCESSES[RANKS], first + rank, name)
                for rank, name in zip(ranks, names, strict=True)
            ]
    links = dict.fromkeys(row for task in timeline.tasks for row in task.rows if row not in found)
    for thread, row in enumerate(links, FIRST_THREADS[LINKS]):
        found[row] = [(PROCESSES[LINKS], thread, row.name)]
    return found


def _name_of(rank: int, candidate: Configuration, coordinate: tuple[int, ...]) -> str:
    """Such as `rank 5 (cfg 1, ring 2)`."""
    degrees = candidate.mesh.degrees
    split = [
        f"{axis} {index}"
        for axis, index, degree in zip(AXES, coordinate, degrees, strict=True)
        if degree > 1
    ]
    return f"rank {rank} ({', '.join(split)})" if split else f"rank {rank}"


def _names(threads: Threads) -> Iterator[Event]:
    for name, process in PROCESSES.items():
        yield _metadata("process_name", process, 0, {"name": name})
        yield _metadata("process_sort_index", process, 0, {"sort_index": process})
    for rows in threads.values():
        for process, thread, name in rows:
            yield _metadata("thread_name", process, thread, {"name": name})
            yield _metadata("thread_sort_index", process, thread, {"sort_index": thread})


def _metadata(name: str, process: int, thread: int, args: Event) -> Event:
    return {"ph": "M", "name": name, "pid": process, "tid": thread, "args": args}


def _slices(timeline: Timeline, threads: Threads) -> Iterator[Event]:
    """A slice on each row of each task that takes time, of the steps that are shown."""
    for task, step, span in zip(timeline.tasks, timeline.step_of, timeline.spans, strict=True):
        if step >= timeline.shown_steps or not task.duration_s:
            continue
        # both ends rounded alike, so that neighbours touch and never overlap
        start_ns, end_ns = round(span.start_s * 1e9), round(span.end_s * 1e9)
        for row in task.rows:
            for process, thread, _ in threads[row]:
                yield {
                    "ph": "X",
                    "name": task.name,
                    "cat": task.category,
                    "pid": process,
                    "tid": thread,
                    "ts": start_ns / 1000,
                    "dur": (end_ns - start_ns) / 1000,
                    "args": {"step": step + 1},
                }
