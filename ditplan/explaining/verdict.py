"""What a plan is worth, in a line."""

from collections.abc import Iterator, Sequence

from ditplan.explaining.rivals import Rival, place_of_plan
from ditplan.explaining.subject import Subject
from ditplan.planner.search.ranking import PricedCandidate

NAMED_PLACES = 4
"""With more places within the error their number is said."""


def verdict_on(subject: Subject, rivals: Sequence[Rival]) -> str:
    """How much faster the plan is than one GPU and than the rule of thumb, and how sure its place
    is.
    """
    said = [*_times(subject), _standing(subject, rivals)]
    return f"{', '.join(said[:-1])}; {said[-1]}" if len(said) > 1 else said[-1]


def _times(subject: Subject) -> Iterator[str]:
    plan, one, usual = subject.plan, subject.one_gpu, subject.baseline
    if plan.mesh.size == 1:
        yield "on one GPU"
    elif one is None:
        yield "no single GPU holds the model"
    else:
        yield f"{_compared(subject, one)} one GPU"
    if usual is not None and plan.mesh != usual.configuration.mesh:
        yield f"{_compared(subject, usual)} the rule of thumb ({usual.configuration.mesh})"
    elif usual is not None and plan.mesh.size > 1:
        yield "the rule of thumb itself"


def _compared(subject: Subject, other: PricedCandidate) -> str:
    """Measured against measured where both were run, else predicted against predicted."""
    own_s, other_s = subject.own.prediction.latency_s, other.prediction.latency_s
    measured_s = subject.measured_s(other.configuration)
    known = "predicted "
    if subject.plan.measurement is not None and measured_s is not None:
        own_s, other_s, known = subject.plan.measurement.latency_s, measured_s, "measured "
    return f"{known}{other_s / own_s:.3g} times as fast as"


def _standing(subject: Subject, rivals: Sequence[Rival]) -> str:
    place = place_of_plan(subject)
    near = sorted({place, *(rival.place for rival in rivals if rival.is_within_error)})
    if len(near) > 1:
        places = f"{', '.join(map(str, near[:-1]))} and {near[-1]}"
        ranks = f"ranks {places}" if len(near) <= NAMED_PLACES else f"{len(near)} ranks"
        today = f"rank {place} today; " if place > 1 else ""
        return f"{today}{ranks} are within the error: measure"
    if place > 1 and rivals:
        return f"rank {place} today, behind {rivals[0].ranked.configuration.mesh}"
    if not rivals:
        return "there is no other mesh"
    return f"ahead of {rivals[0].ranked.configuration.mesh} by more than the error"
