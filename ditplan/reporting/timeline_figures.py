"""Timelines in a report: what is predicted, and beside it what was recorded of a run."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ditplan.explaining.explanation import Explanation
from ditplan.planner.simulation.chrome_trace import chrome_events
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.errors import InputError, one_line
from ditplan.profiles.files import parse_json, path_text, read_text
from ditplan.profiles.job_seats import on_its_own
from ditplan.profiles.plan import ExecutionPlan
from ditplan.profiles.trace_events import RECORDED, Event
from ditplan.reporting.figure import COLOUR_OF_PART, RED, Figure, LeftOut, Table, seconds_text

TIMELINE, RECORDED_TIMELINE = "timeline", "recorded"
MOST_ROWS = 16
"""With more ranks and links than this the first ones are drawn."""

AGAIN = "record it again with `ditplan run --trace`"
NEAR_SHARE = 2e-3
"""Slices of one kind that are nearer than this share of the whole are drawn as one."""

CATEGORIES = {
    "blocks": "matrix products",
    "outside": "outside of blocks",
    "compute": "computing",
    "sends": "between stages",
    "cfg": "samples' outputs",
    "gather": "gathering the output",
}
"""What categories of a trace are called; others are called as they are."""


@dataclass(frozen=True)
class Slice:
    """What a row does from when on, for how long."""

    category: str
    start_s: float
    seconds: float


@dataclass(frozen=True)
class TraceRows:
    """The rows of a trace with their slices, up to the end of the steps that are shown."""

    rows: dict[str, list[Slice]]
    steps: int


def predicted_timeline(found: Explanation) -> Figure | LeftOut:
    """When ranks and links do what in the first steps."""
    subject = found.subject
    title = "The predicted timeline"
    if subject.plan.configuration.step_cache:
        why = "A plan with a step cache has no timeline: steps that are left out aren't simulated."
        return LeftOut(TIMELINE, title, why)
    configuration = subject.plan.configuration
    timeline = subject.model.timeline(configuration, subject.task.workload)
    events = chrome_events(timeline, configuration)
    rows = rows_of_events(events, "the predicted timeline", shown_steps(configuration))
    return timeline_figure(TIMELINE, title, rows)


def recorded_timeline(recorded: TraceRows | None) -> Figure | LeftOut:
    """The same of a run, as `run --trace` recorded it."""
    title = "The recorded timeline"
    if recorded is None:
        why = (
            "No run was recorded: `ditplan run --trace t.json` does, and `--trace t.json` shows it."
        )
        return LeftOut(RECORDED_TIMELINE, title, why)
    return timeline_figure(RECORDED_TIMELINE, title, recorded)


def shown_steps(configuration: Configuration) -> int:
    """One step of an exact plan, as all are alike; with stages the warm-up and two more."""
    part = configuration.pipefusion
    return 1 if part is None else part.warmup_steps + 2


def recorded_rows(trace: Path, plan: ExecutionPlan) -> TraceRows:
    """The first steps of what `run --trace` recorded of a plan.

    Raises:
        InputError: it is no trace, none of a run, or one of another plan.
    """
    text, where = read_text(trace, "a trace that `run --trace` has written"), path_text(trace)
    found = parse_json(text, where, "trace", AGAIN)
    events = found.get("traceEvents") if isinstance(found, dict) else None
    if not isinstance(events, list):
        raise InputError(f"{where}: this is no trace: it has no list `traceEvents`")
    facts = found.get("otherData")
    if not isinstance(facts, dict) or facts.get(RECORDED) is not True:
        raise InputError(f"{where}: this trace doesn't say that it is of a run; {AGAIN}")
    # a run numbers the plan's ranks from 0 on
    configuration = on_its_own(plan).configuration
    if facts.get("plan") != str(configuration):
        other = one_line(str(facts.get("plan")), 120)
        raise InputError(f"{where}: this is a run of {other}, the plan is {configuration}; {AGAIN}")
    return rows_of_events(events, where, shown_steps(configuration))


def rows_of_events(events: Sequence[Event], where: str, steps: int) -> TraceRows:
    """The first steps of a trace's events, as `simulate` and `run` write them.

    Raises:
        InputError: they are none of ditplan's.
    """
    names: dict[int, str] = {}
    slices: defaultdict[int, list[Slice]] = defaultdict(list)
    try:
        for event in events:
            thread = event["tid"]
            if event["ph"] == "M" and event["name"] == "thread_name":
                names[thread] = str(event["args"]["name"])
            elif event["ph"] == "X" and event["args"]["step"] <= steps:
                times = float(event["ts"]) / 1e6, float(event["dur"]) / 1e6
                slices[thread].append(Slice(str(event["cat"]), *times))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where}: this is no trace of ditplan's: {error!r}") from None
    first_s = min((one.start_s for of_row in slices.values() for one in of_row), default=0.0)
    last_s = max((one.start_s + one.seconds for row in slices.values() for one in row), default=0.0)
    rows = {
        names.get(thread, str(thread)): merged(slices[thread], first_s, last_s - first_s)
        for thread in sorted(slices)
    }
    return TraceRows(rows, steps)


def merged(slices: Sequence[Slice], first_s: float, whole_s: float) -> list[Slice]:
    """Slices from `first_s` on; those of one kind that follow each other closely are one, as far as
    a figure could show them apart.
    """
    found: list[Slice] = []
    for one in sorted(slices, key=lambda slice_: slice_.start_s):
        start_s = one.start_s - first_s
        if found and found[-1].category == one.category:
            last = found[-1]
            if start_s - (last.start_s + last.seconds) < NEAR_SHARE * whole_s:
                end_s = max(last.start_s + last.seconds, start_s + one.seconds)
                found[-1] = Slice(one.category, last.start_s, end_s - last.start_s)
                continue
        found.append(Slice(one.category, start_s, one.seconds))
    return found


def timeline_figure(key: str, title: str, trace: TraceRows) -> Figure | LeftOut:
    """Bars along time, a row for each rank and each class of links."""
    rows = dict(list(trace.rows.items())[:MOST_ROWS])
    if not rows:
        return LeftOut(key, title, "The trace has no slice of the steps that would be shown.")
    categories = list(dict.fromkeys(one.category for row in rows.values() for one in row))
    names = {name: _short(name) for name in rows}
    data: list[dict[str, Any]] = []
    for category in categories:
        slices = [
            (names[name], one)
            for name, row in rows.items()
            for one in row
            if one.category == category
        ]
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": CATEGORIES.get(category, category),
                "y": [name for name, _ in slices],
                "base": [round(1e3 * one.start_s, 6) for _, one in slices],
                "x": [round(1e3 * one.seconds, 6) for _, one in slices],
                "marker": {
                    "color": COLOUR_OF_PART.get(category, RED),
                    "line": {"width": 0},
                },
                "hovertemplate": "%{x:.4g} ms from %{base:.4g}<extra>%{fullData.name}</extra>",
            }
        )
    sums = [
        (name, category, sum(one.seconds for one in row if one.category == category))
        for name, row in rows.items()
        for category in categories
    ]
    table = [
        (name, CATEGORIES.get(category, category), seconds_text(s))
        for name, category, s in sums
        if s
    ]
    left = len(trace.rows) - len(rows)
    more = f" {left} further rows are not drawn." if left else ""
    what = "The first step" if trace.steps == 1 else f"Steps 1 to {trace.steps}"
    return Figure(
        key,
        title,
        f"Timeline of {len(rows)} ranks and links: {what.lower()}",
        f"{what}: what each rank and each class of links does, and when it waits.{more} "
        "Slices of one kind that touch are drawn as one.",
        data,
        {
            "barmode": "overlay",
            "bargap": 0.25,
            "xaxis": {"title": {"text": "milliseconds"}},
            "yaxis": {"autorange": "reversed", "automargin": True},
        },
        Table(("row", "what", "seconds"), table),
        height=130 + 26 * len(rows),
    )


def _short(name: str) -> str:
    """A row's name without what stands in brackets, which a phone has no room for."""
    return name.partition(" (")[0]
