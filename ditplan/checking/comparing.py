"""What became of a recorded case: whether anything was lost or got worse, and what moved."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ditplan.checking.replanning import Replanned, identity
from ditplan.profiles.baseline import Answer, RecordedCase, RecordedPlan
from ditplan.profiles.configuration import Configuration

Status = Literal["same", "drifted", "changed", "new", "failed"]
MOVED = 3e-6
"""Prices nearer than this share are the same: both were rounded."""


LEAST_PART = 1e-4
"""Of a latency; a smaller part may be rounded away."""


@dataclass(frozen=True)
class Bounds:
    """What a choice may lose before a case fails: both must be exceeded."""

    percent: float = 2.0
    seconds: float = 0.005

    def are_exceeded(self, worse: float, better: float) -> bool:
        """Whether one cost is above another by more than may be."""
        return worse - better > self.seconds and worse > better * (1 + self.percent / 100)


@dataclass(frozen=True)
class Verdict:
    """What became of a case. `faults` fail it, `notes` don't.

    `old_s` and `new_s` are the best plan's latency then and now; `regret` is by how much the new
    choice is worse than the old one, as a share, by the prices of which `regret_by` speaks. `drift`
    is the largest change of a recorded plan's price, as a share of the old one.
    """

    name: str
    status: Status
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    old: str = ""
    new: str = ""
    old_s: float | None = None
    new_s: float | None = None
    regret: float | None = None
    drift: float = 0.0


def verdict_on(case: RecordedCase, found: Replanned, bounds: Bounds, where: str) -> Verdict:
    """Compares a case's recorded answer with today's."""
    name, old, new = f"{where}: {case.name}", case.answer, found.answer
    old_text, new_text = _choice_text(old), _choice_text(new)
    old_s, new_s = _latency_s(old), _latency_s(new)
    if old is None:
        return Verdict(name, "new", found.unsteady, (), "", new_text, None, new_s)
    regret = regret_by_old_prices(old, new)
    drift = _drift(old, found)
    faults = [*_faults(case, old, found, bounds), *found.unsteady]
    notes = list(_notes(old, found, drift))
    is_same = bool(old.refused and new.refused) or old_text == new_text
    status: Status = "same" if is_same else "changed"
    if status == "same" and (drift > MOVED or _moved_parts(old, found)):
        status = "drifted"
    return Verdict(
        name,
        "failed" if faults else status,
        tuple(faults),
        tuple(notes),
        old_text,
        new_text,
        old_s,
        new_s,
        regret,
        drift,
    )


def regret_by_old_prices(old: Answer, new: Answer) -> float | None:
    """By how much the new choice costs more than the old one, as a share of it, if the recorded
    prices are right: at least so much where it wasn't recorded, since the ones in order were
    better. None where there is nothing to compare.
    """
    if not old.plans or not new.plans:
        return None
    chosen, best = _recorded_cost(old, new.plans[0].configuration), old.plans[0].weighed
    return chosen / best - 1


def _recorded_cost(old: Answer, configuration: Configuration) -> float:
    """What was recorded of a configuration, or of the worst that is in order: one that wasn't
    recorded was worse than that, or not known.
    """
    if plan := _recorded(old, configuration):
        return plan.weighed
    return max(plan.weighed for plan in old.plans[: old.ranked])


def _recorded(old: Answer, configuration: Configuration) -> RecordedPlan | None:
    """The recorded plan of a configuration: with its stages divided so, or else otherwise, which
    the planner of then thought better.
    """
    settings = _without_division(configuration)
    alike = [plan for plan in old.plans if _without_division(plan.configuration) == settings]
    exact = [plan for plan in alike if plan.configuration == configuration]
    return next(iter([*exact, *alike]), None)


def _without_division(configuration: Configuration) -> Configuration:
    part = configuration.pipefusion
    if part is None:
        return configuration
    stages = (1,) * len(part.blocks_per_stage)
    return replace(configuration, pipefusion=part.model_copy(update={"blocks_per_stage": stages}))


def _faults(case: RecordedCase, old: Answer, found: Replanned, bounds: Bounds) -> Iterator[str]:
    new = found.answer
    if old.plans and new.refused:
        yield f"lost: there is no plan any more: {new.refused}"
        return
    if old.refused and new.plans:
        yield f"gained: there was no plan, and is {new.plans[0].configuration} now"
    yield from _lost(old, found)
    if not (old.plans and new.plans):
        return
    if case.asked.get("objective") == "gpus":
        yield from _other_number_of_gpus(case, old, new, bounds)
    yield from _worse_choice(case, old, found, bounds)
    yield from _swapped(old, found)
    yield from _free_now(old, new)


def _lost(old: Answer, found: Replanned) -> Iterator[str]:
    """Plans that could run and can't any more, and those that could not: a memory model that is
    wrong shows in a job alone.
    """
    for plan, now in zip(old.plans, found.recorded, strict=True):
        if plan.fits and now.why:
            yield f"lost: {plan.configuration}: {now.why}"
        if not plan.fits and not now.why:
            yield f"gained: {plan.configuration} didn't fit, and would be run now"


def _other_number_of_gpus(
    case: RecordedCase, old: Answer, new: Answer, bounds: Bounds
) -> Iterator[str]:
    """Where the fewest GPUs are asked for: more of them, or so few that it was too slow."""
    best, chosen = old.plans[0].configuration, new.plans[0].configuration
    most_s, cost = case.asked.get("max_latency_s"), _recorded_cost(old, chosen)
    if chosen.mesh.size > best.mesh.size:
        yield f"regret: {chosen} needs {chosen.mesh.size} GPUs, {best} {best.mesh.size}"
    elif isinstance(most_s, int | float) and bounds.are_exceeded(cost, most_s):
        yield f"regret: {chosen} takes {cost:.4g} s by the recorded prices, at most {most_s:g} s"


def _worse_choice(
    case: RecordedCase, old: Answer, found: Replanned, bounds: Bounds
) -> Iterator[str]:
    """The new choice against the old one: by the recorded prices, and by today's."""
    best, chosen = old.plans[0], found.answer.plans[0]
    is_other_size = chosen.configuration.mesh.size != best.configuration.mesh.size
    if chosen.configuration == best.configuration:
        return
    if case.asked.get("objective") == "gpus" and is_other_size:
        return
    cost = _recorded_cost(old, chosen.configuration)
    known = _recorded(old, chosen.configuration) is not None
    if bounds.are_exceeded(cost, best.weighed):
        yield (
            f"regret: {chosen.configuration} instead of {best.configuration} costs "
            f"{'' if known else 'at least '}{_percent(cost / best.weighed - 1)} more by the "
            "recorded prices"
        )
    again = found.recorded[0].plan
    if again and again.fits and bounds.are_exceeded(chosen.weighed, again.weighed):
        yield (
            f"missed: {best.configuration} costs {_percent(1 - again.weighed / chosen.weighed)} "
            f"less than what is chosen by today's own prices, {chosen.configuration}"
        )


def _swapped(old: Answer, found: Replanned) -> Iterator[str]:
    """Pairs of recorded plans that were further apart than their intervals, in the other order."""
    pairs = [
        (plan, now.plan)
        for plan, now in zip(old.plans, found.recorded, strict=True)
        if now.plan and plan.fits
    ]
    for (one, one_now), (other, other_now) in itertools.combinations(pairs, 2):
        if one.latency_s > other.latency_s:
            one, one_now, other, other_now = other, other_now, one, one_now
        is_clear = one.latency_s * (1 + old.interval) < other.latency_s * (1 - old.interval)
        if is_clear and one_now.latency_s > other_now.latency_s:
            yield (
                f"order: {one.configuration} was clearly faster than {other.configuration} "
                f"({one.latency_s:.4g} and {other.latency_s:.4g} s), and isn't now "
                f"({one_now.latency_s:.4g} and {other_now.latency_s:.4g} s)"
            )


def _free_now(old: Answer, new: Answer) -> Iterator[str]:
    """What the choice took time for, and takes none for now."""
    best = old.plans[0]
    if best.configuration != new.plans[0].configuration:
        return
    for part, seconds in old.parts.items():
        if seconds > LEAST_PART * best.latency_s and not new.parts.get(part):
            taken = f"{part} took {seconds:.4g} s of {best.configuration}"
            yield f"dropped: {taken}, and takes none now"


def _drift(old: Answer, found: Replanned) -> float:
    """The largest change of a recorded plan's latency or cost, as a share."""
    changes = [
        max(abs(now.plan.latency_s / plan.latency_s - 1), abs(now.plan.weighed / plan.weighed - 1))
        for plan, now in zip(old.plans, found.recorded, strict=True)
        if now.plan
    ]
    return max(changes, default=0.0)


def _moved_parts(old: Answer, found: Replanned) -> list[str]:
    """What beside the latency is another number for the same choice."""
    new = found.answer
    if not (old.plans and new.plans):
        return []
    moved = []
    if old.plans[0].configuration == new.plans[0].configuration:
        numbers = {"end to end": (old.end_to_end_s, new.end_to_end_s)}
        numbers |= {"setup": (old.setup_s, new.setup_s)}
        for part in {**old.parts, **new.parts}:
            numbers[part] = (old.parts.get(part, 0.0), new.parts.get(part, 0.0))
        least_s = MOVED * old.plans[0].latency_s
        moved = [
            f"{part} {before:.4g} -> {now:.4g} s"
            for part, (before, now) in numbers.items()
            if abs(now - before) > max(least_s, MOVED * before)
        ]
    return [*moved, *_moved_memory(old.plans, found)]


def _moved_memory(plans: Sequence[RecordedPlan], found: Replanned) -> list[str]:
    changes = [
        now.plan.memory_bytes / plan.memory_bytes - 1
        for plan, now in zip(plans, found.recorded, strict=True)
        if now.plan
    ]
    largest = max(changes, key=abs, default=0.0)
    return [f"memory {_signed(largest)}"] if largest else []


def _notes(old: Answer, found: Replanned, drift: float) -> Iterator[str]:
    """What there is to know that doesn't fail."""
    new = found.answer
    if old.given != new.given:
        yield "the model, or its usual workload, isn't what was recorded"
    if old.plans and new.plans and old.plans[0].configuration != new.plans[0].configuration:
        again = found.recorded[0].plan
        gain = again.weighed / new.plans[0].weighed - 1 if again else 0.0
        words = f"by today's prices the old choice costs {_percent(gain)} more"
        yield words if again else "the old choice can't be had any more"
    if drift > MOVED:
        yield f"prices moved by up to {_percent(drift)}"
    yield from _moved_parts(old, found)


def _latency_s(answer: Answer | None) -> float | None:
    return answer.plans[0].latency_s if answer and answer.plans else None


def _choice_text(answer: Answer | None) -> str:
    if answer is None:
        return ""
    return str(identity(answer.plans[0].configuration)) if answer.plans else "no plan"


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"


def _signed(share: float) -> str:
    return f"{100 * share:+.3g}%"


def failed(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Those that fail."""
    return [verdict for verdict in verdicts if verdict.status == "failed"]
