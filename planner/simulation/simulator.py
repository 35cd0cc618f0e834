"""When tasks begin and end that take turns on rows: a discrete-event simulation.

It knows rows, durations and what waits for what, nothing of models, ranks or links.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Row(NamedTuple):
    """Something that does one task at a time, such as a rank or a link; `kind` says which."""

    kind: str
    name: str


@dataclass(frozen=True)
class SimTask:
    """Work that holds all its rows for a time.

    A row does its tasks in the order in which they are listed, as a stream does. `after` are the
    places in the list of other tasks that must have ended.
    """

    name: str
    category: str
    rows: tuple[Row, ...]
    duration_s: float
    after: tuple[int, ...] = ()


@dataclass(frozen=True)
class Span:
    """When a task begins and ends."""

    start_s: float
    end_s: float


def simulate(tasks: Sequence[SimTask]) -> list[Span]:
    """Begins each task as soon as its rows have done what is listed before it and what it waits for
    has ended; the spans stand in the order of the tasks.

    Raises:
        ValueError: a duration that is no number from 0 on, a task that waits for one that isn't
            there, or tasks that wait for each other.
    """
    followers, waits = _followers(tasks)
    spans: dict[int, Span] = {}
    events = [(task.duration_s, place, 0.0) for place, task in enumerate(tasks) if not waits[place]]
    heapq.heapify(events)
    while events:
        now_s, ended, start_s = heapq.heappop(events)
        spans[ended] = Span(start_s, now_s)
        for place in followers[ended]:
            waits[place] -= 1
            if not waits[place]:
                heapq.heappush(events, (now_s + tasks[place].duration_s, place, now_s))
    stuck = [task.name for place, task in enumerate(tasks) if place not in spans]
    if stuck:
        raise ValueError(
            f"tasks wait for each other and never begin: {len(stuck)}, such as {stuck[0]!r}"
        )
    return [spans[place] for place in range(len(tasks))]


def _followers(tasks: Sequence[SimTask]) -> tuple[list[list[int]], list[int]]:
    """Which tasks wait for each one, and for how many each one waits."""
    followers: list[list[int]] = [[] for _ in tasks]
    waits = []
    last_on: dict[Row, int] = {}
    for place, task in enumerate(tasks):
        if not 0 <= task.duration_s < math.inf:
            raise ValueError(f"task {task.name!r} takes {task.duration_s} s; give 0 or more")
        if unknown := [other for other in task.after if not 0 <= other < len(tasks)]:
            raise ValueError(
                f"task {task.name!r} waits for number {unknown[0]}, there are {len(tasks)} tasks"
            )
        before = {*task.after, *(last_on[row] for row in task.rows if row in last_on)}
        waits.append(len(before))
        for other in before:
            followers[other].append(place)
        last_on.update(dict.fromkeys(task.rows, place))
    return followers, waits
