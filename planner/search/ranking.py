"""The outcome of a search: candidates in order, with why each one lost, and the plan made of
the best.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ditplan.planner.network.topology import Topology
from ditplan.planner.objectives import Figures, Objective, choose, pareto_set, quality_order
from ditplan.planner.search.text_sizes import text_sizes_of
from ditplan.planner.space.candidate import groups_of
from ditplan.profiles.backends import LoadedBackend
from ditplan.profiles.cluster import ClusterProfile
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.errors import InputError, Sentence, Setting
from ditplan.profiles.fingerprint import Fingerprint
from ditplan.profiles.locations import locations_of
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import (
    ExecutionPlan,
    Fallback,
    Measurement,
    PlannedModel,
    Prediction,
    Quality,
    RunnerUp,
)
from ditplan.profiles.workload import Workload

SAME_SPEED = 1.005
"""Latencies nearer than this are called equally fast."""

PREDICTED_LEAD = 1.27
"""An exact plan is preferred to one of unknown error unless it takes more than so many times as
long. Of 250 pairs of an exact plan and one with PipeFusion 95% lost less than this of the lead that
was predicted (benchmarks/results/interval-coverage-2026-11-29.txt); errors that both share, such
as a device slower than its data sheet, cancel out, so it is less than an interval."""

MEASURED_LEAD = 1.03
"""The same where it was run: medians of a few runs differ by less."""

EXACT = Quality(exact=True)

LINKED_PARTS = {
    "ulysses": ("all_to_all", ("ulysses",)),
    "ring": ("ring's send and receive", ("ring",)),
    "gather": ("gathering the output", ("ring", "ulysses")),
    "cfg": ("exchanging the samples' outputs", ("dp", "cfg")),
    "weights": ("gathering the weights of blocks", ("dp", "cfg", "ring", "ulysses")),
    "sends": ("waiting for what other stages send", ("pipefusion",)),
}
COMPUTED_PARTS = {
    "blocks": "the blocks' matrix products take",
    "attention": "self-attention takes",
    "outside": "the transformer outside its blocks takes",
    "scheduler": "the scheduler takes",
    "launch": "launching kernels takes",
    "bubbles": "waiting for other stages takes",
}


@dataclass(frozen=True)
class PricedCandidate:
    """A candidate with all that is known of it.

    `corrected_s` is what is expected of one that wasn't measured by what was measured of others.
    `reason` says why it lost, and is empty for the best. `too_big` says why GPUs can't hold it,
    `warning` by how much it exceeds the memory of CPUs, which hold it by swapping. Where throughput
    is asked for, `replicas` copies run at once, each `slowdown` times as slow as alone.
    `must_lead` says that exact plans are preferred unless this one is clearly faster. `before_s` is
    what it took when a plan was made that is now resumed.
    """

    configuration: Configuration
    prediction: Prediction
    fallback: Fallback = "eager"
    measurement: Measurement | None = None
    corrected_s: float | None = None
    is_baseline: bool = False
    failure: str | None = None
    too_big: str | None = None
    warning: str | None = None
    quality: Quality = EXACT
    replicas: int = 1
    slowdown: float = 1.0
    must_lead: bool = False
    before_s: float | None = None
    reason: str = ""

    @property
    def latency_s(self) -> float:
        """Measured if it was, else predicted, corrected if others were measured."""
        if self.measurement:
            return self.measurement.latency_s
        return self.prediction.latency_s if self.corrected_s is None else self.corrected_s

    @property
    def lead(self) -> float:
        """How many times as long exact plans must take for this one to be chosen; 1 for any."""
        if not self.must_lead:
            return 1.0
        return MEASURED_LEAD if self.measurement else PREDICTED_LEAD

    @property
    def weighed_s(self) -> float:
        """The latency that it is chosen by: longer than its own where it must lead."""
        return self.latency_s * self.lead

    def figures(self, batch: int) -> Figures:
        """What a table shows, with so many pictures a call, while all replicas run."""
        return self._figures(self.latency_s, batch)

    def weighed(self, batch: int) -> Figures:
        """What an objective chooses by: the same with `weighed_s`."""
        return self._figures(self.weighed_s, batch)

    def _figures(self, alone_s: float, batch: int) -> Figures:
        return Figures(
            latency_s=sortable_s(alone_s * self.slowdown),
            gpus=self.configuration.mesh.size,
            memory_bytes=self.prediction.memory_bytes,
            quality=quality_order(self.quality),
            pictures=self.replicas * batch,
        )


@dataclass(frozen=True)
class SearchResult:
    """Candidates, the objective's best first: those measured, then those only predicted, those that
    are too slow for it, failed, and those that don't fit.

    `legal` counts candidates that could run, `pruned` those dropped by reason. `ended` says why
    fewer were measured than asked for. `better_order` is the best plan on paper with fast devices
    listed first, where that is faster. `own_choice` is the mesh that the backend's engine takes by
    itself, where it does. `fingerprint` is what the best plan's ranks found where they
    ran, `resumed` the plan that it goes on from.
    """

    ranked: tuple[PricedCandidate, ...]
    legal: int
    pruned: dict[str, int]
    search_s: float
    spec: ModelSpec
    workload: Workload
    cluster: ClusterProfile
    backend: LoadedBackend
    objective: Objective
    text_lengths: Mapping[int, float] = field(default_factory=dict)
    ended: str = ""
    better_order: PricedCandidate | None = None
    own_choice: Mesh | None = None
    fingerprint: Fingerprint | None = None
    resumed: ExecutionPlan | None = None

    @property
    def best(self) -> PricedCandidate:
        """The candidate to run."""
        return self.ranked[0]

    @property
    def alternatives(self) -> tuple[PricedCandidate, ...]:
        """All that lost."""
        return self.ranked[1:]

    @property
    def pareto(self) -> tuple[PricedCandidate, ...]:
        """Those that no other one beats in latency, GPUs, memory and quality at once, fastest
        first.
        """
        weighed = _eligible(self.ranked)
        batch = self.workload.batch
        return tuple(weighed[i] for i in pareto_set([one.figures(batch) for one in weighed]))

    def to_plan(self, index: int = 0, runner_ups: int = 8) -> ExecutionPlan:
        """The plan of one candidate, the best one if not said otherwise, with the best of the
        others beside it.
        """
        chosen = self.ranked[index]
        others = [ranked for i, ranked in enumerate(self.ranked) if i != index]
        plan = build_plan(
            chosen, self.spec, self.workload, self.cluster, self.backend, self.text_lengths
        )
        found = self.fingerprint if index == 0 else None
        kept = self.resumed.kept_when_resumed if self.resumed else {}
        return plan.model_copy(
            update={
                "measurement": chosen.measurement,
                "fingerprint": found or plan.fingerprint,
                "runner_ups": tuple(runner_up(ranked) for ranked in others[:runner_ups]),
                **kept,
            }
        )


def build_plan(
    ranked: PricedCandidate,
    spec: ModelSpec,
    workload: Workload,
    cluster: ClusterProfile,
    backend: LoadedBackend,
    text_lengths: Mapping[int, float],
) -> ExecutionPlan:
    """The plan that runs a candidate, with nothing said of others; `text_lengths` as in `Task`."""
    configuration = ranked.configuration
    sizes = text_sizes_of(configuration, spec, workload, cluster, backend, text_lengths)
    return ExecutionPlan(
        model=PlannedModel.of_spec(spec),
        workload=workload,
        backend=backend.name,
        configuration=configuration,
        text_sizes=sizes,
        fallback=ranked.fallback,
        quality=ranked.quality,
        prediction=ranked.prediction,
        measurement=None,
        runner_ups=(),
        fingerprint=fingerprint_of(cluster, configuration.ranks),
        locations=locations_of(cluster, configuration.ranks),
    )


def fingerprint_of(cluster: ClusterProfile, ranks: Iterable[int]) -> Fingerprint:
    """What must be the same where the plan runs: the devices of its ranks, kinds of link,
    software.
    """
    devices = cluster.devices
    return Fingerprint(
        cluster=cluster.name,
        devices=tuple(devices[rank].name for rank in ranks),
        link_kinds=cluster.link_kinds,
        software=cluster.software,
    )


def runner_up(ranked: PricedCandidate) -> RunnerUp:
    """A loser as plans record it, with what it took before where it wasn't run now."""
    measured_s, reason = ranked.before_s, ranked.reason
    if ranked.measurement:
        measured_s = ranked.measurement.latency_s
    elif measured_s is not None:
        reason = f"{reason} (took {measured_s:.4g} s when it was last run)"
    return RunnerUp(
        configuration=ranked.configuration,
        predicted_s=ranked.prediction.latency_s,
        measured_s=measured_s,
        memory_bytes=ranked.prediction.memory_bytes,
        reason=reason,
    )


def in_order(
    found: Sequence[PricedCandidate],
    topology: Topology,
    objective: Objective,
    batch: int = 1,
) -> tuple[PricedCandidate, ...]:
    """Best first, with the reasons why the others lost; `batch` is the pictures a call makes.

    What was measured comes before what was only predicted; equals by fewer GPUs first.

    Raises:
        InputError: none is as fast as the objective demands.
    """
    eligible = _eligible(found)
    place = chosen_of(eligible, objective, batch)
    if place is None:
        figures = [ranked.figures(batch) for ranked in eligible]
        raise InputError(_why_none_is_fast_enough(eligible, figures, objective))
    best = eligible[place]
    others = sorted(
        (ranked for ranked in found if ranked is not best),
        key=lambda ranked: _sort_key(ranked, objective, batch),
    )
    losers = (
        replace(ranked, reason=reason_for(ranked, best, topology, objective, batch))
        for ranked in others
    )
    return (best, *losers)


def chosen_of(eligible: Sequence[PricedCandidate], objective: Objective, batch: int) -> int | None:
    """The place of the best one; None if none is as fast as the objective demands.

    One of unknown error that leads by too little is only chosen where no other will do.
    """
    place = choose([ranked.weighed(batch) for ranked in eligible], objective)
    if place is not None:
        return place
    return choose([ranked.figures(batch) for ranked in eligible], objective)


def to_measure(
    fitting: Sequence[PricedCandidate], objective: Objective, batch: int
) -> list[PricedCandidate]:
    """Candidates in the order in which they are worth measuring.

    The first is the one that would be chosen unmeasured. For the fewest GPUs the next ones are the
    fastest of each number of GPUs that is faster than fewer: if the first turns out too slow, the
    next may not be.
    """
    figures = [ranked.figures(batch) for ranked in fitting]
    steps: set[int] = set()
    if objective.name == "gpus":
        steps = set(pareto_set([Figures(one.latency_s, one.gpus, 0, (0, 0.0)) for one in figures]))
    chosen = chosen_of(fitting, objective, batch)
    places = sorted(
        range(len(fitting)),
        key=lambda i: (
            i != chosen,
            not objective.is_met(figures[i]),
            i not in steps,
            *objective.key(figures[i]),
        ),
    )
    return [fitting[place] for place in places]


def reason_for(
    loser: PricedCandidate,
    best: PricedCandidate,
    topology: Topology,
    objective: Objective,
    batch: int = 1,
) -> str:
    """Why a candidate lost against the best, in words."""
    if loser.too_big:
        return f"does not fit: {loser.too_big}"
    if loser.failure:
        return f"failed when it was run: {loser.failure}"
    theirs = loser.figures(batch)
    if not objective.is_met(theirs):
        return f"too slow: {_seconds(loser, theirs)}, at most {objective.max_latency_s:g} s"
    if objective.name == "gpus" and (more := theirs.gpus - best.configuration.mesh.size) > 0:
        return f"needs {more} more GPU{'s' if more > 1 else ''}"
    if loser.lead > 1 and not objective.is_met(loser.weighed(batch)):
        return (
            f"{_seconds(loser, theirs)}, too near to {objective.max_latency_s:g} s for a plan of "
            "unknown error"
        )
    if objective.name == "throughput":
        return _less_throughput(loser, best, batch)
    return _slower(loser, best, topology)


def _slower(loser: PricedCandidate, best: PricedCandidate, topology: Topology) -> str:
    if loser.measurement and best.measurement:
        words = _compared("measured", loser.latency_s, best.latency_s, loser, best)
        return words + (_too_small_a_lead(loser) if loser.latency_s < best.latency_s else "")
    how = "predicted" if loser.corrected_s is None else "expected"
    theirs = loser.latency_s
    ours = best.prediction.latency_s if loser.corrected_s is None else best.latency_s
    words = _compared(how, theirs, ours, loser, best)
    if theirs < ours * SAME_SPEED and best.measurement:
        return f"not measured; {words}"
    if theirs < ours * SAME_SPEED:
        return f"{words}{_too_small_a_lead(loser)}"
    return f"{words}: {_main_cause(loser, best, topology)}"


def _less_throughput(loser: PricedCandidate, best: PricedCandidate, batch: int) -> str:
    """Compares what was measured, or is expected after measurements; else what is predicted of
    both.
    """
    how, pair = _how_known(loser), (loser, best)
    if how == "predicted":
        pair = (loser, replace(best, measurement=None))
    theirs, ours = (ranked.figures(batch).throughput_per_s for ranked in pair)
    percent = 100 * (theirs / ours - 1)
    words = f"{how} {abs(percent):.0f}% {'more' if percent > 0 else 'less'} throughput"
    if abs(percent) < 100 * (SAME_SPEED - 1):
        words = f"{how} equal throughput"
    elif percent > 0:
        words += _too_small_a_lead(loser)
    if loser.slowdown >= 1.1 and loser.slowdown > best.slowdown:
        words += f"; {loser.replicas} copies take {loser.slowdown:.1f} times as long as one"
    return words if loser.measurement or not best.measurement else f"not measured; {words}"


def _too_small_a_lead(loser: PricedCandidate) -> str:
    """Why a plan that is as fast as the best one or faster isn't the best."""
    if not loser.must_lead:
        return ""
    return f", not by the {100 * (loser.lead - 1):.0f}% that a plan of unknown error must be"


def _how_known(ranked: PricedCandidate) -> str:
    """Where a candidate's latency comes from."""
    if ranked.measurement:
        return "measured"
    return "predicted" if ranked.corrected_s is None else "expected"


def sortable_s(latency_s: float) -> float:
    """A latency without the digits in which sums of the same parts differ."""
    return float(f"{latency_s:.6g}")


def _eligible(found: Sequence[PricedCandidate]) -> list[PricedCandidate]:
    """Those to choose from: the measured ones if there are any, else all that fit."""
    able = [ranked for ranked in found if not ranked.too_big and not ranked.failure]
    return [ranked for ranked in able if ranked.measurement] or able


def _sort_key(ranked: PricedCandidate, objective: Objective, batch: int) -> tuple[object, ...]:
    group = 0 if ranked.measurement else 1
    group = 2 if ranked.failure else group
    group = 3 if ranked.too_big else group
    figures = ranked.figures(batch)
    mesh = ranked.configuration.mesh
    return (
        group,
        not objective.is_met(figures),
        *objective.key(figures),
        mesh.degrees,
        ranked.configuration.placement,
    )


def _seconds(ranked: PricedCandidate, figures: Figures) -> str:
    """How long a call takes, whether that was measured, and how many others run beside it."""
    beside = f" while {ranked.replicas} copies run" if ranked.replicas > 1 else ""
    return f"{figures.latency_s:.3g} s{beside} ({_how_known(ranked)})"


def _why_none_is_fast_enough(
    weighed: Sequence[PricedCandidate], figures: Sequence[Figures], objective: Objective
) -> Sentence:
    fastest, ranked = min(zip(figures, weighed, strict=True), key=lambda pair: pair[0].latency_s)
    enough_s = math.ceil(fastest.latency_s * 1e4) / 1e4
    return Sentence(
        Setting("max_latency_s", f"{objective.max_latency_s:g}"),
        f": no plan is that fast; the fastest, {ranked.configuration.mesh}, takes "
        f"{_seconds(ranked, fastest)}: use ",
        Setting("max_latency_s", f"{enough_s:g} or more"),
        ", more GPUs, or fewer steps",
    )


def _compared(
    how: str, theirs_s: float, ours_s: float, loser: PricedCandidate, best: PricedCandidate
) -> str:
    percent = 100 * (theirs_s / ours_s - 1)
    if abs(percent) < 100 * (SAME_SPEED - 1):
        more = loser.configuration.mesh.size - best.configuration.mesh.size
        return f"{how} equally fast" + (f", with {more} more GPUs" if more > 0 else "")
    return f"{how} {abs(percent):.0f}% {'slower' if percent > 0 else 'faster'}"


def _main_cause(loser: PricedCandidate, best: PricedCandidate, topology: Topology) -> str:
    """The part in which the loser loses most, with the kind of link where it is an exchange."""
    ours, theirs = best.prediction.parts, loser.prediction.parts
    part = max(theirs, key=lambda name: theirs[name] - ours.get(name, 0.0))
    share = f"{100 * theirs[part] / loser.prediction.latency_s:.0f}% of the step"
    if part in LINKED_PARTS:
        what, axes = LINKED_PARTS[part]
        kind = topology.slowest_kind(groups_of(loser.configuration, axes))
        return f"{what}{f' over {kind}' if kind else ''} takes {share}"
    words = f"{COMPUTED_PARTS.get(part, f'{part} takes')} {share}"
    fewer = best.configuration.mesh.size - loser.configuration.mesh.size
    return f"{words}, on {fewer} fewer GPU{'s' if fewer > 1 else ''}" if fewer > 0 else words
