"""A timeline as a trace that Perfetto (ui.perfetto.dev) and chrome://tracing open."""

from collections.abc import Iterator, Sequence

from ditplan.planner.simulation.simulator import Row
from ditplan.planner.simulation.timeline import Timeline
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.trace_events import (
    Event,
    TraceRow,
    link_row,
    rank_name,
    rank_row,
    slice_event,
    trace_events,
    trace_text,
)

MOST_RANKS = 64
"""With more ranks than this those that do the same share a row."""


def chrome_trace(timeline: Timeline, candidate: Configuration, title: str) -> str:
    """The first steps as JSON: a process `ranks` with a row for each rank, or for each kind of rank
    where there are many, and a process `links` with a row for each class of links.

    Times are microseconds. What is shown, and the seconds of all steps, stands in `otherData`.
    """
    ranks = sum(len(ranks) for ranks in timeline.ranks.values())
    facts = {
        "title": title,
        "plan": str(candidate),
        "latency_s": timeline.total_s,
        "steps_shown": f"1 to {timeline.shown_steps} of {timeline.steps}",
        "ranks": ranks,
        "ranks_shown": "each" if ranks <= MOST_RANKS else "one of each kind",
    }
    return trace_text(chrome_events(timeline, candidate), facts)


def chrome_events(timeline: Timeline, candidate: Configuration) -> list[Event]:
    """The events of `chrome_trace`."""
    drawn = _drawn(timeline, candidate)
    rows = [row for of_row in drawn.values() for row in of_row]
    return trace_events(rows, _slices(timeline, drawn))


Drawn = dict[Row, Sequence[TraceRow]]
"""What is drawn for each row of a timeline."""


def _drawn(timeline: Timeline, candidate: Configuration) -> Drawn:
    found: Drawn = {}
    coordinates = dict(zip(candidate.placement, candidate.mesh.coordinates(), strict=True))
    many = len(coordinates) > MOST_RANKS
    for row, ranks in timeline.ranks.items():
        if many:
            name = f"{row.name}: {len(ranks)} ranks from {ranks[0]} on"
            found[row] = [rank_row(ranks[0], name)]
        else:
            found[row] = [
                rank_row(rank, rank_name(rank, candidate, coordinates[rank])) for rank in ranks
            ]
    links = dict.fromkeys(row for task in timeline.tasks for row in task.rows if row not in found)
    for number, row in enumerate(links):
        found[row] = [link_row(number, row.name)]
    return found


def _slices(timeline: Timeline, drawn: Drawn) -> Iterator[Event]:
    """A slice on each row of each task that takes time, of the steps that are shown."""
    for task, step, span in zip(timeline.tasks, timeline.step_of, timeline.spans, strict=True):
        if step >= timeline.shown_steps or not task.duration_s:
            continue
        for row in task.rows:
            for where in drawn[row]:
                times = (span.start_s, span.end_s)
                yield slice_event(where, task.name, task.category, times, step + 1)
