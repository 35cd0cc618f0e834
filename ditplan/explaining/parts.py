"""Where a plan's time goes: by part, by rank, by link, and what it is bound by."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from ditplan.explaining.subject import Subject
from ditplan.planner.search.ranking import COMPUTED_PARTS, LINKED_PARTS, PricedCandidate
from ditplan.planner.simulation.timeline import Timeline
from ditplan.planner.space.candidate import groups_of

PRODUCTS, ATTENTION, HOST, WAITING = (
    "matrix products",
    "self-attention",
    "the host, which launches kernels",
    "waiting for other stages",
)
RESOURCES = {
    "blocks": PRODUCTS,
    "outside": PRODUCTS,
    "attention": ATTENTION,
    "launch": HOST,
    "scheduler": HOST,
    "bubbles": WAITING,
}
"""What a part that is no exchange keeps busy."""


@dataclass(frozen=True)
class Part:
    """Seconds of the denoising loop on the busiest rank by one cause. `link` is the kind of the
    slowest link where it is an exchange.
    """

    part: str
    seconds: float
    share: float
    what: str
    resource: str
    link: str | None


@dataclass(frozen=True)
class RankTime:
    """What ranks that do the same spend the loop on; the seconds sum to its latency."""

    ranks: tuple[int, ...]
    computes_s: float
    exchanges_s: float
    host_s: float
    waits_s: float


@dataclass(frozen=True)
class LinkTime:
    """How long links of a class are busy, of the whole loop."""

    link: str
    busy_s: float
    share: float


@dataclass(frozen=True)
class Binding:
    """What takes most of the busiest rank's time."""

    resource: str
    seconds: float
    share: float

    def __str__(self) -> str:
        return f"bound by {self.resource}: {100 * self.share:.0f}% of the time"


def parts_of(subject: Subject, ranked: PricedCandidate) -> tuple[Part, ...]:
    """The parts of a plan's predicted latency, largest first; they sum to it."""
    total_s = ranked.prediction.latency_s
    device = subject.task.cluster.devices[ranked.configuration.placement[0]].name
    found = []
    for name, seconds in ranked.prediction.parts.items():
        link = None
        if name in LINKED_PARTS:
            what, axes = LINKED_PARTS[name]
            link = subject.model.topology.slowest_kind(groups_of(ranked.configuration, axes))
            resource = f"{link or 'the'} links"
        else:
            words = COMPUTED_PARTS.get(name, name)
            what = words.removesuffix(" takes").removesuffix(" take")
            kind = RESOURCES.get(name, name)
            resource = f"{kind} on {device}" if kind in (PRODUCTS, ATTENTION) else kind
        found.append(Part(name, seconds, seconds / total_s, what, resource, link))
    return tuple(sorted(found, key=lambda part: -part.seconds))


def binding_of(parts: tuple[Part, ...]) -> Binding:
    """The resource whose parts take the longest together."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for part in parts:
        seconds[part.resource] += part.seconds
    resource = max(seconds, key=lambda name: seconds[name])
    total_s = sum(seconds.values())
    return Binding(resource, seconds[resource], seconds[resource] / total_s)


def ranks_of(subject: Subject, ranked: PricedCandidate) -> tuple[RankTime, ...]:
    """What each kind of rank does: all do the same without PipeFusion, those of a stage with it."""
    if ranked.configuration.pipefusion is None:
        return (_alike_ranks(ranked),)
    timeline = subject.model.timeline(ranked.configuration, subject.task.workload)
    return tuple(_stages(timeline))


def _alike_ranks(ranked: PricedCandidate) -> RankTime:
    sums: defaultdict[str, float] = defaultdict(float)
    for name, seconds in ranked.prediction.parts.items():
        sums["links" if name in LINKED_PARTS else RESOURCES.get(name, PRODUCTS)] += seconds
    return RankTime(
        ranked.configuration.ranks,
        computes_s=sums[PRODUCTS] + sums[ATTENTION],
        exchanges_s=sums["links"],
        host_s=sums[HOST],
        waits_s=sums[WAITING],
    )


def _stages(timeline: Timeline) -> Iterator[RankTime]:
    """Each stage's tasks; what is simulated of a long loop stands for all of it."""
    scale = timeline.total_s / max(span.end_s for span in timeline.spans)
    for row, ranks in timeline.ranks.items():
        sums: defaultdict[str, float] = defaultdict(float)
        for task in timeline.tasks:
            if row in task.rows:
                sums[task.category] += task.duration_s * scale
        exchanges_s, host_s = sums["sends"] + sums["cfg"], sums["scheduler"]
        busy_s = sums["compute"] + exchanges_s + host_s
        yield RankTime(ranks, sums["compute"], exchanges_s, host_s, timeline.total_s - busy_s)


def links_of(subject: Subject, ranked: PricedCandidate) -> tuple[LinkTime, ...]:
    """How long each class of links is busy in the loop, busiest first.

    With PipeFusion these are the transfers between stages; what ranks of a stage exchange is in
    its computing.
    """
    if ranked.configuration.mesh.size == 1:
        return ()
    timeline = subject.model.timeline(ranked.configuration, subject.task.workload)
    end_s = max(span.end_s for span in timeline.spans)
    computed_share = 1.0
    if cache := ranked.configuration.step_cache:
        computed_share = cache.computed_steps(timeline.steps) / timeline.steps
    scale = timeline.total_s / end_s * computed_share
    busy: defaultdict[str, float] = defaultdict(float)
    for task in timeline.tasks:
        for row in task.rows:
            if row not in timeline.ranks:
                busy[row.name] += task.duration_s * scale
    total_s = ranked.prediction.latency_s
    found = (LinkTime(name, seconds, seconds / total_s) for name, seconds in busy.items())
    return tuple(sorted(found, key=lambda link: -link.busy_s))
