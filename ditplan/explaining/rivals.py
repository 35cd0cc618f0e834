"""The plans that lost against one, in which part, and which of them may be faster all the same."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ditplan.explaining.subject import Subject
from ditplan.planner.network.topology import Topology
from ditplan.planner.objectives import FASTEST
from ditplan.planner.search.ranking import (
    COMPUTED_PARTS,
    LINKED_PARTS,
    MEASURED_LEAD,
    PricedCandidate,
    reason_for,
)
from ditplan.profiles.plan import Prediction

SHOWN = 8
"""So many meshes that lost are explained."""


@dataclass(frozen=True)
class Rival:
    """A plan that lost: `place` is its place by predicted latency among the best of each mesh.

    `lost_in` is the part in which it loses most seconds, `lost_s` how many. `is_within_error` says
    that measuring could turn the order round.
    """

    place: int
    ranked: PricedCandidate
    measured_s: float | None
    lost_in: str
    lost_s: float
    why: str
    is_within_error: bool

    def to_json(self) -> dict[str, object]:
        """What `explain` prints of it."""
        configuration = self.ranked.configuration
        return {
            "place": self.place,
            "mesh": str(configuration.mesh),
            "mode": configuration.mode,
            "configuration": str(configuration),
            "gpus": configuration.mesh.size,
            "predicted_s": self.ranked.prediction.latency_s,
            "interval_s": list(self.ranked.prediction.interval_s),
            "measured_s": self.measured_s,
            "exact": self.ranked.quality.exact,
            "baseline": self.ranked.is_baseline,
            "lost_in": self.lost_in,
            "lost_s": self.lost_s,
            "why": self.why,
            "within_error": self.is_within_error,
        }


def best_of_meshes(ranked: Iterator[PricedCandidate]) -> list[PricedCandidate]:
    """The first of each mesh, in order."""
    best: dict[tuple[int, ...], PricedCandidate] = {}
    for one in ranked:
        best.setdefault(one.configuration.mesh.degrees, one)
    return list(best.values())


def place_of_plan(subject: Subject) -> int:
    """Which place the plan has among the best of each mesh, by predicted latency and its lead."""
    own_s = subject.own.prediction.latency_s * subject.own.lead
    meshes = best_of_meshes(iter(subject.fitting))
    mesh = subject.plan.mesh
    others = (one for one in meshes if one.configuration.mesh != mesh)
    return 1 + sum(one.prediction.latency_s * one.lead < own_s for one in others)


def rivals_of(subject: Subject) -> tuple[Rival, ...]:
    """The best of each other mesh, fastest first, as far as they are near."""
    own = subject.own
    meshes = best_of_meshes(iter(subject.fitting))
    others = [one for one in meshes if one.configuration.mesh != subject.plan.mesh]
    found = sorted(others, key=lambda one: one.prediction.latency_s * one.lead)
    own_s = own.prediction.latency_s * own.lead
    ahead = sum(one.prediction.latency_s * one.lead < own_s for one in found)
    topology = Topology(subject.task.cluster)
    rivals = []
    for number, ranked in enumerate(found[:SHOWN], start=1):
        measured_s = subject.measured_s(ranked.configuration)
        part, lost_s = lost_in(ranked.prediction, own.prediction)
        rivals.append(
            Rival(
                place=number + (number > ahead),
                ranked=ranked,
                measured_s=measured_s,
                lost_in=part,
                lost_s=lost_s,
                why=reason_for(ranked, _unmeasured(own), topology, FASTEST),
                is_within_error=_is_within_error(subject, ranked, measured_s),
            )
        )
    return tuple(rivals)


def lost_in(loser: Prediction, best: Prediction) -> tuple[str, float]:
    """The part of a prediction that is longer by most seconds, and by how many."""
    more = {part: s - best.parts.get(part, 0.0) for part, s in loser.parts.items()}
    part = max(more, key=lambda name: more[name])
    return part, more[part]


def words_for(part: str) -> str:
    """What a part of a prediction is, in words."""
    if part in LINKED_PARTS:
        return LINKED_PARTS[part][0]
    return COMPUTED_PARTS.get(part, part).removesuffix(" takes").removesuffix(" take")


def predictions_overlap(one: Prediction, other: Prediction) -> bool:
    """Whether two predictions of one task may be in the wrong order.

    Each part is as uncertain as its prediction is on average, and what both have in common cancels
    out: what remains is the difference of each part, times that share.
    """
    names = one.parts.keys() | other.parts.keys()
    apart = [one.parts.get(name, 0.0) - other.parts.get(name, 0.0) for name in names]
    share = max(_uncertain_share(one), _uncertain_share(other))
    return abs(sum(apart)) <= share * sum(map(abs, apart))


def _uncertain_share(prediction: Prediction) -> float:
    low_s, high_s = prediction.interval_s
    return (high_s - low_s) / 2 / prediction.latency_s


def _is_within_error(subject: Subject, rival: PricedCandidate, measured_s: float | None) -> bool:
    """By measurements where there are both, else by the predictions."""
    own = subject.own.measurement
    if own is not None and measured_s is not None:
        return max(own.latency_s, measured_s) <= MEASURED_LEAD * min(own.latency_s, measured_s)
    return predictions_overlap(subject.own.prediction, rival.prediction)


def _unmeasured(ranked: PricedCandidate) -> PricedCandidate:
    """The plan as predicted: reasons compare predictions with predictions."""
    return replace(ranked, measurement=None)
