"""A priced candidate's denoising loop as tasks on ranks and links, in the order of the runtime.

Ranks that do the same at the same time are one row: all of an exact plan's, and those of each stage
of PipeFusion. Each has the busiest rank's share, on the slowest device, as in the price, and all
durations are the price's.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ditplan.planner.cost.activities import Activity, CollectiveCost, Computation, RingAttention
from ditplan.planner.cost.rank_work import RankWork
from ditplan.planner.cost.roofline import Timed
from ditplan.planner.cost.share import calls_of
from ditplan.planner.cost.step import Step
from ditplan.planner.network.groups import listed
from ditplan.planner.network.topology import Topology
from ditplan.planner.network.traffic import messages
from ditplan.planner.simulation.simulator import Row, SimTask, Span, simulate

SHOWN_STEPS = 3
"""So many steps are worth looking at, beside PipeFusion's warm-up: all later ones are alike."""

MOST_LINKS = 24
"""With more classes of link than this, those of all hosts count as one for each kind."""

TrackRows = tuple[Row, ...]


@dataclass(frozen=True)
class Timeline:
    """Tasks, the step that each belongs to, counted from 0, and when they begin and end.

    `ranks` says which ranks a row stands for. The first `shown_steps` of all `steps` are complete,
    later ones may be left out; `total_s` is that of all.
    """

    tasks: tuple[SimTask, ...]
    step_of: tuple[int, ...]
    spans: tuple[Span, ...]
    ranks: dict[Row, tuple[int, ...]]
    steps: int
    shown_steps: int
    total_s: float


@dataclass
class Listing:
    """Tasks that are being listed, with the step of each."""

    tasks: list[SimTask] = field(default_factory=list)
    step_of: list[int] = field(default_factory=list)
    step: int = 0

    def add(
        self, name: str, category: str, rows: TrackRows, seconds: float, after: tuple[int, ...] = ()
    ) -> int:
        """Adds a task of this step and returns its place in the list."""
        self.tasks.append(SimTask(name, category, rows, seconds, after))
        self.step_of.append(self.step)
        return len(self.tasks) - 1


def link_classes(topology: Topology, pairs: Iterable[tuple[int, int]]) -> tuple[str, ...]:
    """Classes of the links that messages between ranks pass, such as `node0/pcie`: the host and
    the kind, or the kind alone between hosts.
    """
    used = set()
    for source, target in pairs:
        for (a, b), kind in topology.links_between(source, target):
            host, other = a.partition("/")[0], b.partition("/")[0]
            used.add((host if host == other else "", kind))
    if len(used) > MOST_LINKS:
        used = {("", kind) for _, kind in used}
    return tuple(f"{host}/{kind}" if host else kind for host, kind in sorted(used))


def exact_timeline(work: RankWork, step: Step) -> Timeline:
    """Calls of the transformer with their exchanges, then the scheduler.

    A step begins when the one before has ended and is like it, so the first ones are simulated and
    the others counted.
    """
    listing, ranks = Listing(), Row("ranks", "all")
    activities = list(_activities(work, step))
    # blocks of a run do the same
    distinct = {activity for _, activity in activities}
    links_of = {activity: _links_of(work.topology, activity) for activity in distinct}
    steps = step.workload.steps
    shown = min(steps, SHOWN_STEPS)
    for listing.step in range(shown):
        for name, activity in activities:
            links = links_of[activity]
            if isinstance(activity, RingAttention):
                _list_ring(listing, name, activity, (ranks,), links)
            else:
                listing.add(name, activity.part, (ranks, *links), activity.timed.seconds)
    spans = simulate(listing.tasks)
    return Timeline(
        tasks=tuple(listing.tasks),
        step_of=tuple(listing.step_of),
        spans=tuple(spans),
        ranks={ranks: tuple(sorted(step.configuration.placement))},
        steps=steps,
        shown_steps=shown,
        total_s=spans[-1].end_s / shown * steps,
    )


def _activities(work: RankWork, step: Step) -> Iterator[tuple[str, Activity]]:
    """What a rank does in a step, with the name of each."""
    calls = calls_of(step.configuration.mesh, work.spec, step.workload)
    booked = work.step(step)
    launch_s = sum(seconds for (part, _), seconds in booked.seconds.items() if part == "launch")
    for _ in range(calls):
        for computed in work.activities.outside(step):
            yield "outside of blocks", computed
        for run in work.spec.blocks:
            activities = list(work.activities.of_block(step, run))
            for number in range(run.count):
                for activity in activities:
                    yield _name_of(activity, f"{run.kind} {number}"), activity
        for exchange in (*work.activities.gather(step), *work.activities.cfg(step)):
            yield _name_of(exchange, "output"), exchange
        yield "waiting for launches", Computation("launch", Timed(launch_s / calls, "computed"))
    scheduler = work.computing.scheduler(step.workload, step.device)
    yield "scheduler", Computation("scheduler", scheduler)


def _name_of(activity: Activity, place: str) -> str:
    if isinstance(activity, CollectiveCost):
        return f"{place}: {activity.operation}"
    if isinstance(activity, RingAttention):
        return place
    what = {"blocks": "all but attention", "ulysses": "packing"}.get(activity.part, activity.part)
    return f"{place}: {what}"


def _links_of(topology: Topology, activity: Activity) -> TrackRows:
    """The rows of links that an activity loads."""
    if isinstance(activity, Computation):
        return ()
    exchange = activity.sent if isinstance(activity, RingAttention) else activity
    pairs = (
        (source, target)
        for group in listed(exchange.groups)
        for source, target in messages(exchange.operation, group)
    )
    classes = link_classes(topology, pairs) or ("unknown",)
    return tuple(Row("links", name) for name in classes)


def _list_ring(
    listing: Listing, name: str, ring: RingAttention, ranks: TrackRows, links: TrackRows
) -> None:
    """A block is sent on, then attended to and merged; the next one is when both are done."""
    rows = links if ring.is_hidden else (*ranks, *links)
    came: tuple[int, ...] = ()
    done = (len(listing.tasks) - 1,)
    for block in range(ring.blocks):
        coming: tuple[int, ...] = ()
        if block + 1 < ring.blocks:
            sent = f"{name}: send block {block}"
            coming = (listing.add(sent, "ring", rows, ring.sent.timed.seconds, (*done, *came)),)
        attended = f"{name}: attention to block {block}"
        done = (listing.add(attended, "attention", ranks, ring.attend.seconds, came),)
        if block:
            merged = f"{name}: merge block {block}"
            done = (listing.add(merged, "ring", ranks, ring.merge.seconds),)
        came = coming
