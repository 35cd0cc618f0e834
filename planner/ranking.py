"""The outcome of a search: candidates in order, with why each one lost, and the plan made of
the best.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ditplan.planner.space import Candidate
from ditplan.planner.topology import Topology
from ditplan.profiles.backends import Backend
from ditplan.profiles.cluster import ClusterProfile
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import (
    Execution,
    ExecutionPlan,
    Fingerprint,
    Measurement,
    PlannedModel,
    Prediction,
    Quality,
    RunnerUp,
)
from ditplan.profiles.workload import Workload

SAME_SPEED = 1.005
"""Latencies nearer than this are called equally fast."""

EXACT = Quality(exact=True)

LINKED_PARTS = {
    "ulysses": ("all_to_all", ("ulysses",)),
    "ring": ("ring's send and receive", ("ring",)),
    "gather": ("gathering the output", ("ring", "ulysses")),
    "cfg": ("exchanging the samples' outputs", ("dp", "cfg")),
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
class Ranked:
    """A candidate with all that is known of it.

    `corrected_s` is what is expected of one that wasn't measured by what was measured of others.
    `reason` says why it lost, and is empty for the best. `too_big` says why GPUs can't hold it,
    `warning` by how much it exceeds the memory of CPUs, which hold it by swapping.
    """

    candidate: Candidate
    prediction: Prediction
    execution: Execution
    measurement: Measurement | None = None
    corrected_s: float | None = None
    control: bool = False
    failure: str | None = None
    too_big: str | None = None
    warning: str | None = None
    quality: Quality = EXACT
    reason: str = ""

    @property
    def latency_s(self) -> float:
        """Measured if it was, else predicted, corrected if others were measured."""
        if self.measurement:
            return self.measurement.latency_s
        return self.prediction.latency_s if self.corrected_s is None else self.corrected_s


@dataclass(frozen=True)
class Ranking:
    """Candidates, best first: those measured, then those only predicted, failed, and those that
    don't fit.

    `legal` counts candidates that could run, `pruned` those dropped by reason. `ended` says why
    fewer were measured than asked for.
    """

    ranked: tuple[Ranked, ...]
    legal: int
    pruned: dict[str, int]
    search_s: float
    spec: ModelSpec
    workload: Workload
    cluster: ClusterProfile
    backend: Backend
    ended: str = ""

    @property
    def best(self) -> Ranked:
        """The candidate to run."""
        return self.ranked[0]

    @property
    def alternatives(self) -> tuple[Ranked, ...]:
        """All that lost."""
        return self.ranked[1:]

    def to_plan(self, index: int = 0, runner_ups: int = 8) -> ExecutionPlan:
        """The plan of one candidate, the best one if not said otherwise, with the best of the
        others beside it.
        """
        chosen = self.ranked[index]
        others = [ranked for i, ranked in enumerate(self.ranked) if i != index]
        plan = build_plan(chosen, self.spec, self.workload, self.cluster, self.backend)
        return plan.model_copy(
            update={
                "measurement": chosen.measurement,
                "runner_ups": tuple(runner_up(ranked) for ranked in others[:runner_ups]),
            }
        )


def build_plan(
    ranked: Ranked,
    spec: ModelSpec,
    workload: Workload,
    cluster: ClusterProfile,
    backend: Backend,
) -> ExecutionPlan:
    """The plan that runs a candidate, with nothing said of others."""
    candidate = ranked.candidate
    return ExecutionPlan(
        model=PlannedModel.of(
            spec.name, spec.pipeline_class, spec.transformer_class, spec.config_hash
        ),
        workload=workload,
        backend=backend.name,
        mesh=candidate.mesh,
        placement=candidate.placement,
        pipefusion=candidate.pipefusion,
        execution=ranked.execution,
        quality=ranked.quality,
        prediction=ranked.prediction,
        measurement=None,
        runner_ups=(),
        fingerprint=fingerprint_of(cluster, candidate.mesh.size),
    )


def fingerprint_of(cluster: ClusterProfile, ranks: int) -> Fingerprint:
    """What must be the same where the plan runs: the devices of its ranks, kinds of link,
    software.
    """
    return Fingerprint(
        cluster=cluster.name,
        devices=tuple(device.name for device in cluster.devices[:ranks]),
        link_kinds=cluster.link_kinds,
        software=cluster.software,
    )


def runner_up(ranked: Ranked) -> RunnerUp:
    """A loser as plans record it."""
    return RunnerUp(
        mesh=ranked.candidate.mesh,
        placement=ranked.candidate.placement,
        mode=ranked.candidate.mode,
        pipefusion=ranked.candidate.pipefusion,
        predicted_s=ranked.prediction.latency_s,
        measured_s=ranked.measurement.latency_s if ranked.measurement else None,
        memory_bytes=ranked.prediction.memory_bytes,
        reason=ranked.reason,
    )


def in_order(found: Sequence[Ranked], topology: Topology) -> tuple[Ranked, ...]:
    """Best first, with the reasons why the others lost.

    What was measured comes before what was only predicted; equals by fewer GPUs first.
    """
    ordered = sorted(found, key=_rank)
    best = ordered[0]
    losers = (replace(ranked, reason=reason_for(ranked, best, topology)) for ranked in ordered[1:])
    return (best, *losers)


def reason_for(loser: Ranked, best: Ranked, topology: Topology) -> str:
    """Why a candidate lost against the best, in words."""
    if loser.too_big:
        return f"does not fit: {loser.too_big}"
    if loser.failure:
        return f"failed when it was run: {loser.failure}"
    if loser.measurement and best.measurement:
        return _compared("measured", loser.latency_s, best.latency_s, loser, best)
    how = "predicted" if loser.corrected_s is None else "expected"
    theirs = loser.latency_s
    ours = best.prediction.latency_s if loser.corrected_s is None else best.latency_s
    words = _compared(how, theirs, ours, loser, best)
    if theirs < ours * SAME_SPEED and best.measurement:
        return f"not measured; {words}"
    if theirs < ours * SAME_SPEED:
        return words
    return f"{words}: {_main_cause(loser, best, topology)}"


def sortable_s(latency_s: float) -> float:
    """A latency without the digits in which sums of the same parts differ."""
    return float(f"{latency_s:.6g}")


def _rank(ranked: Ranked) -> tuple[object, ...]:
    group = 0 if ranked.measurement else 1
    group = 2 if ranked.failure else group
    group = 3 if ranked.too_big else group
    mesh = ranked.candidate.mesh
    return (
        group,
        sortable_s(ranked.latency_s),
        mesh.size,
        mesh.degrees,
        ranked.candidate.placement,
    )


def _compared(how: str, theirs_s: float, ours_s: float, loser: Ranked, best: Ranked) -> str:
    percent = 100 * (theirs_s / ours_s - 1)
    if abs(percent) < 100 * (SAME_SPEED - 1):
        more = loser.candidate.mesh.size - best.candidate.mesh.size
        return f"{how} equally fast" + (f", with {more} more GPUs" if more > 0 else "")
    return f"{how} {abs(percent):.0f}% {'slower' if percent > 0 else 'faster'}"


def _main_cause(loser: Ranked, best: Ranked, topology: Topology) -> str:
    """The part in which the loser loses most, with the kind of link where it is an exchange."""
    ours, theirs = best.prediction.parts, loser.prediction.parts
    part = max(theirs, key=lambda name: theirs[name] - ours.get(name, 0.0))
    share = f"{100 * theirs[part] / loser.prediction.latency_s:.0f}% of the step"
    if part in LINKED_PARTS:
        what, axes = LINKED_PARTS[part]
        kind = topology.slowest_kind(loser.candidate.groups(axes))
        return f"{what}{f' over {kind}' if kind else ''} takes {share}"
    words = f"{COMPUTED_PARTS.get(part, f'{part} takes')} {share}"
    fewer = best.candidate.mesh.size - loser.candidate.mesh.size
    return f"{words}, on {fewer} fewer GPU{'s' if fewer > 1 else ''}" if fewer > 0 else words
