"""Plans a recorded case again, and prices what was recorded of it with the planner of today."""

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ditplan.models import model_named
from ditplan.planner.network.topology import Topology
from ditplan.planner.search.pricing import cost_model_of, priced_as_is
from ditplan.planner.search.ranking import PricedCandidate, SearchResult
from ditplan.planner.search.replicas import with_replicas
from ditplan.planner.search.search import search
from ditplan.planner.space.enumerate import patching_violation, why_illegal
from ditplan.planner.space.legality import schedule_of
from ditplan.planner.task import Task
from ditplan.planning import task_on_paper
from ditplan.profiles.baseline import DIGITS, Answer, RecordedCase, RecordedPlan, rounded
from ditplan.profiles.capabilities import require_mode
from ditplan.profiles.cluster import ClusterProfile
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.errors import InputError
from ditplan.profiles.mesh import AXES
from ditplan.profiles.plan import Prediction
from ditplan.profiles.record import FrozenModel
from ditplan.settings import PlanSettings, checked

RANKED = 4
"""So many of the best plans are recorded in order."""

SAME_PRICE = 1e-9
"""Prices of one plan that differ by a larger share depend on what was priced before."""


@dataclass(frozen=True)
class Repriced:
    """A recorded plan with today's price, or why it can't be had any more."""

    plan: RecordedPlan | None
    why: str = ""


@dataclass(frozen=True)
class Replanned:
    """What a case's answer is today, what becomes of the recorded plans, in their order, and which
    prices depend on what else is priced.
    """

    answer: Answer
    recorded: tuple[Repriced, ...] = ()
    unsteady: tuple[str, ...] = ()


def digest(*records: FrozenModel) -> str:
    """A short name for what records hold, the same on every machine."""
    plain = [record.model_dump(mode="json") for record in records]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]


def identity(configuration: Configuration) -> Configuration:
    """A configuration without what its price decides: kernel and kind of ring."""
    return replace(configuration, attention="auto", ring="pass")


def replanned(case: RecordedCase, cluster: ClusterProfile) -> Replanned:
    """A case planned again.

    Raises:
        InputError: the question itself is wrong, and nothing is recorded that could be lost.
    """
    old = case.answer
    try:
        named = model_named(case.model)
        settings = checked(PlanSettings, case.asked)
        task = task_on_paper(named, cluster, settings)
    except (InputError, TypeError) as error:
        if old is None or old.refused:
            raise InputError(f"case {case.name}: ", str(error)) from None
        return Replanned(Answer(given=old.given, refused=str(error)))
    given = digest(task.spec, task.workload)
    recorded = old.plans if old else ()
    try:
        found = search(task)
    except InputError as error:
        answer = Answer(given=given, refused=str(error))
        repriced, _ = _priced_alone(task, recorded, ())
        return Replanned(answer, tuple(repriced))
    kept, ranked = kept_of(found)
    repriced, alone = _priced_alone(task, recorded, kept)
    by_search = {identity(one.configuration): one for one in found.ranked}
    unsteady = dict.fromkeys(
        f"stale: {one.configuration} costs {_price_text(one)} alone, {_price_text(searched)} in "
        "the search"
        for one in alone
        if (searched := by_search.get(identity(one.configuration)))
        and not _is_same_price(one, searched)
    )
    return Replanned(_answer(task, given, kept, ranked), tuple(repriced), tuple(unsteady))


def kept_of(found: SearchResult) -> tuple[list[PricedCandidate], int]:
    """What is recorded of a search, the best first, and how many of these are the best in order:
    then come the best of each mode, one device, the best along each axis alone, and the plans
    nearest to what memory holds on either side.
    """
    objective, batch = found.objective, found.workload.batch
    fitting = [one for one in found.ranked if not one.too_big]
    by_cost = sorted(
        fitting,
        key=lambda one: (
            one is not found.best,
            not objective.is_met(one.weighed(batch)),
            *objective.key(one.weighed(batch)),
            one.configuration.key,
        ),
    )
    ranked = by_cost[:RANKED]
    kinds: dict[object, PricedCandidate] = {}
    for one in by_cost:
        kinds.setdefault(one.configuration.mode, one)
        axes = [axis for axis in AXES if getattr(one.configuration.mesh, axis) > 1]
        if len(axes) <= 1:
            kinds.setdefault(tuple(axes), one)
    too_big = [one for one in found.ranked if one.too_big]
    largest = max(fitting, key=_by_memory)
    smallest = [min(too_big, key=_by_memory)] if too_big else []
    kept = {id(one): one for one in [*ranked, *kinds.values(), largest, *smallest]}
    return list(kept.values()), len(ranked)


def _by_memory(one: PricedCandidate) -> tuple[int, str]:
    return one.prediction.memory_bytes, one.configuration.key


def _answer(task: Task, given: str, kept: Sequence[PricedCandidate], ranked: int) -> Answer:
    best = kept[0].prediction
    shares = []
    for one in kept:
        low_s, high_s = one.prediction.interval_s
        shares.append((high_s - low_s) / 2 / one.prediction.latency_s)
    return Answer(
        given=given,
        ranked=ranked,
        interval=round(max(shares), 4),
        end_to_end_s=rounded(best.end_to_end_s),
        setup_s=rounded(best.setup_s),
        parts=_parts(best),
        plans=tuple(recorded_plan(task, one) for one in kept),
    )


def _parts(prediction: Prediction) -> dict[str, float]:
    """Seconds by cause, as many digits of them as the latency has."""
    digits = DIGITS - 1 - math.floor(math.log10(prediction.latency_s))
    parts = {name: round(seconds, digits) for name, seconds in prediction.parts.items()}
    return {name: seconds for name, seconds in parts.items() if seconds}


def recorded_plan(task: Task, one: PricedCandidate) -> RecordedPlan:
    """A priced candidate as it is recorded."""
    latency_s, cost = rounded(one.prediction.latency_s), rounded(_cost(task, one))
    return RecordedPlan(
        configuration=identity(one.configuration),
        latency_s=latency_s,
        memory_bytes=one.prediction.memory_bytes,
        cost=None if cost == latency_s else cost,
        fits=not one.too_big,
    )


def _cost(task: Task, one: PricedCandidate) -> float:
    """What the objective weighs: seconds a picture of all copies, or those of a call."""
    if task.objective.name == "throughput":
        return 1 / one.weighed(task.workload.batch).throughput_per_s
    return one.weighed_s


def _priced_alone(
    task: Task, recorded: Iterable[RecordedPlan], kept: Iterable[PricedCandidate]
) -> tuple[list[Repriced], list[PricedCandidate]]:
    """Recorded plans and those of today's answer, last ones first, by a cost model that has priced
    nothing else; of the recorded ones what becomes of them.
    """
    topology = Topology(task.cluster)
    model, alone = cost_model_of(task, topology), []
    for one in reversed(list(kept)):
        alone.append(priced_as_is(task, model, one.configuration))
    repriced: list[Repriced] = []
    for plan in reversed(list(recorded)):
        if why := why_not_legal(task, topology, plan.configuration):
            repriced.insert(0, Repriced(None, why))
            continue
        one = priced_as_is(task, model, plan.configuration)
        alone.append(one)
        if task.objective.name == "throughput":
            one = with_replicas(task, topology, [one])[0]
        repriced.insert(0, Repriced(recorded_plan(task, one), one.too_big or ""))
    return repriced, alone


def why_not_legal(task: Task, topology: Topology, configuration: Configuration) -> str:
    """Why the planner of today wouldn't price a configuration; empty if it would."""
    mesh, part = configuration.mesh, configuration.pipefusion
    spec, workload = task.spec, task.workload
    wrong: Any = why_illegal(mesh, spec, workload, None, task.backend, approximate=True)
    if not wrong and (last := configuration.ranks[-1]) >= topology.ranks:
        wrong = f"{mesh} has rank {last}, the cluster has {topology.ranks} GPUs"
    if not wrong and part:
        found = patching_violation(mesh, spec, workload, part.patches, part.warmup_steps)
        wrong = found.sentence if found else None
    if (
        not wrong
        and part
        and part.schedule != (usual := schedule_of(spec, task.backend.capabilities))
    ):
        wrong = f"its schedule is {part.schedule}, that of {spec.name} is {usual}"
    if not wrong and part and sum(part.blocks_per_stage) != spec.block_count:
        wrong = f"its stages have {sum(part.blocks_per_stage)} blocks, {spec.block_count} there are"
    wrong = wrong or task.backend.why_unsupported(configuration, spec, workload)
    if wrong:
        return str(wrong)
    try:
        require_mode(task.backend.capabilities, configuration.mode, task.device_kind)
    except InputError as error:
        return str(error)
    return ""


def _price_text(one: PricedCandidate) -> str:
    return f"{one.prediction.latency_s:.10g} s and {one.prediction.memory_bytes} bytes"


def _is_same_price(one: PricedCandidate, other: PricedCandidate) -> bool:
    ours, theirs = one.prediction, other.prediction
    apart_s = abs(ours.latency_s - theirs.latency_s)
    return apart_s <= SAME_PRICE * theirs.latency_s and ours.memory_bytes == theirs.memory_bytes
