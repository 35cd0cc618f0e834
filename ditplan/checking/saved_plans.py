"""Plans that a user has saved, held against the planner of today: whether they are still legal and
fit, are near the best, and stand for the devices they name.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ditplan.checking.comparing import MOVED, Bounds, Status, Verdict
from ditplan.checking.replanning import identity, why_not_legal
from ditplan.models import model_named
from ditplan.planner.network.topology import Topology
from ditplan.planner.objectives import quality_order
from ditplan.planner.search.pricing import cost_model_of, priced_as_is
from ditplan.planner.search.ranking import PricedCandidate, fingerprint_of
from ditplan.planner.search.search import search
from ditplan.planner.task import Task, TuneRequest
from ditplan.profiles.backends import find_backend
from ditplan.profiles.baseline import rounded
from ditplan.profiles.book import PlanBook
from ditplan.profiles.catalog import cluster_names, find_cluster
from ditplan.profiles.cluster import ClusterProfile
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.errors import InputError
from ditplan.profiles.files import parse_json, path_text, read_text
from ditplan.profiles.plan import ExecutionPlan
from ditplan.profiles.record import Record

APART = 0.03
"""Measured latencies that differ by more than this share have an order."""


@dataclass(frozen=True)
class SavedPlan:
    """A plan with its name, and the cluster that it is for where that is known; or why it can't be
    read.
    """

    name: str
    plan: ExecutionPlan | None
    cluster: ClusterProfile | None = None
    fault: str = ""


def saved_plans(path: Path) -> Iterator[SavedPlan]:
    """The plans of a file: one, or those of a book; none where it holds something else.

    A plan's cluster is the shipped one that its fingerprint names, else `NAME.json` of that name in
    the plan's folder, or the one that was measured for it: `cluster.json` in its study.
    """
    name = f"plans: {path.stem}"
    try:
        plans = _plans_in(path)
        found = [(plan, _cluster_of(plan, path)) for plan in plans]
    except InputError as error:
        yield SavedPlan(name, None, fault=str(error))
        return
    for number, (plan, cluster) in enumerate(found, start=1):
        label = f"{name} {number}" if len(found) > 1 else name
        yield SavedPlan(label, plan, cluster)


def _plans_in(path: Path) -> tuple[ExecutionPlan, ...]:
    text = read_text(path, "a plan or a book of plans")
    data = parse_json(text, path_text(path), "file", "name a folder of plans")
    if not isinstance(data, dict):
        return ()
    kinds: dict[str, type[Record]] = {"entries": PlanBook, "fingerprint": ExecutionPlan}
    for field, kind in kinds.items():
        if field in data:
            found = kind.from_json(text, path_text(path))
            if isinstance(found, PlanBook):
                return tuple(entry.plan for entry in found.entries)
            assert isinstance(found, ExecutionPlan)
            return (found,)
    return ()


def cluster_named_by(plan: ExecutionPlan, path: Path) -> str | None:
    """The shipped cluster that a plan's fingerprint names, or the file beside the plan's `path`
    that has it; None where there is neither.
    """
    name = plan.fingerprint.cluster
    if name in cluster_names():
        return name
    beside = (path.parent / f"{name}.json", path.with_suffix(".study") / "cluster.json")
    return next((str(file) for file in beside if file.is_file()), None)


def _cluster_of(plan: ExecutionPlan, path: Path) -> ClusterProfile | None:
    name = cluster_named_by(plan, path)
    return None if name is None else find_cluster(name)


def verdict_on_plan(saved: SavedPlan, bounds: Bounds) -> Verdict:
    """What becomes of a saved plan."""
    plan = saved.plan
    if plan is None:
        return Verdict(saved.name, "failed", (saved.fault,))
    text, old_s = str(identity(plan.configuration)), _known_s(plan)
    if wrong := _wrong_model(plan):
        return Verdict(saved.name, "failed", (wrong,), (), text, "", old_s)
    if saved.cluster is None:
        why = (
            f"not priced: nothing is known of cluster {plan.fingerprint.cluster}; put its profile "
            f"beside the plan as {plan.fingerprint.cluster}.json"
        )
        return Verdict(saved.name, "same", (), (why,), text, text, old_s)
    try:
        return _priced_verdict(saved.name, plan, saved.cluster, bounds)
    except InputError as error:
        return Verdict(saved.name, "failed", (f"lost: {error}",), (), text, "", old_s)


def _wrong_model(plan: ExecutionPlan) -> str:
    """Why the plan isn't for the model of its name any more; empty if it is."""
    try:
        spec = model_named(plan.model.name).spec
    except InputError as error:
        return str(error)
    try:
        plan.require_model(spec.transformer_class, spec.config_hash)
    except InputError as error:
        return str(error)
    return ""


def _priced_verdict(
    name: str, plan: ExecutionPlan, cluster: ClusterProfile, bounds: Bounds
) -> Verdict:
    spec, configuration = model_named(plan.model.name).spec, plan.configuration
    text, old_s = str(identity(configuration)), _known_s(plan)
    task = Task(spec, plan.workload, cluster, backend=find_backend(plan.backend))
    topology = Topology(cluster)
    if why := why_not_legal(task, topology, configuration):
        return Verdict(name, "failed", (f"lost: {why}",), (), text, "", old_s)
    own = priced_as_is(task, cost_model_of(task, topology), configuration)
    faults = [*_other_places(plan, cluster)]
    if own.too_big:
        faults.append(f"lost: doesn't fit: {own.too_big}")
    found = _search(plan, cluster)
    best = fastest_as_good(found, own)
    own_s, best_s = own.prediction.latency_s, best.prediction.latency_s
    if not own.too_big and bounds.are_exceeded(own_s, best_s):
        faults.append(
            f"regret: {identity(best.configuration)} takes {best_s:.4g} s, this plan {own_s:.4g} s "
            f"({100 * (own_s / best_s - 1):.3g}% more)"
        )
    faults += _measured_out_of_order(plan, task, topology)
    predicted = plan.prediction
    drift = abs(own_s / predicted.latency_s - 1) if predicted else 0.0
    notes = [f"was predicted at {predicted.latency_s:.4g} s"] if predicted and drift > MOVED else []
    is_best = identity(best.configuration) == identity(configuration)
    status: Status = "drifted" if notes else "same" if is_best else "changed"
    return Verdict(
        name,
        "failed" if faults else status,
        tuple(faults),
        tuple(notes),
        text,
        str(identity(best.configuration)),
        old_s,
        rounded(own_s),
        own_s / best_s - 1,
        drift,
    )


def _known_s(plan: ExecutionPlan) -> float | None:
    """What the plan says it takes."""
    if plan.measurement:
        return plan.measurement.latency_s
    return plan.prediction.latency_s if plan.prediction else None


def _search(plan: ExecutionPlan, cluster: ClusterProfile) -> Sequence[PricedCandidate]:
    """All plans on at most as many GPUs, of such a kind of quality and in a mode that was demanded:
    fallback "refuse" says that one was.
    """
    named = model_named(plan.model.name)
    cached = plan.configuration.step_cache is not None
    request = TuneRequest(
        named.spec,
        known=named.known_quality,
        quality="any" if cached else "exact" if plan.quality.exact else "safe",
        gpus=plan.mesh.size,
        mode=plan.configuration.mode if plan.fallback == "refuse" else None,
        backend=find_backend(plan.backend),
    )
    try:
        return search(request.task(plan.workload, cluster)).ranked
    except InputError:
        # nothing fits, which is said of the plan itself
        return ()


def fastest_as_good(found: Sequence[PricedCandidate], own: PricedCandidate) -> PricedCandidate:
    """The fastest plan that fits and is no further from one device's result than `own`."""
    worst = quality_order(own.quality)
    as_good = [one for one in found if not one.too_big and quality_order(one.quality) <= worst]
    return min([*as_good, own], key=lambda one: one.prediction.latency_s)


def _other_places(plan: ExecutionPlan, cluster: ClusterProfile) -> Iterator[str]:
    """What the plan's fingerprint says that isn't so of the cluster of that name."""
    there = [rank for rank in plan.configuration.ranks if rank < len(cluster.devices)]
    today, then = fingerprint_of(cluster, there), plan.fingerprint
    for place, (rank, name) in enumerate(zip(plan.configuration.ranks, then.devices, strict=True)):
        found = today.devices[place] if place < len(there) else "no device"
        if found != name:
            yield f"fingerprint: {name} on rank {rank}, in {cluster.name} there is {found}"
            break
    if then.link_kinds != today.link_kinds:
        before, now = ", ".join(then.link_kinds), ", ".join(today.link_kinds)
        yield f"fingerprint: links are {before}, in {cluster.name} they are {now}"


def _measured_out_of_order(plan: ExecutionPlan, task: Task, topology: Topology) -> Iterator[str]:
    """Pairs of the plan's measured configurations that were predicted in order and aren't now."""
    if plan.measurement is None or plan.prediction is None:
        return
    known = [(plan.configuration, plan.measurement.latency_s, plan.prediction.latency_s)]
    for other in plan.runner_ups:
        if other.measured_s is not None:
            known.append((other.configuration, other.measured_s, other.predicted_s))
    model = cost_model_of(task, topology)
    now = [
        (*one, priced_as_is(task, model, one[0]).prediction.latency_s)
        for one in known
        if not why_not_legal(task, topology, one[0])
    ]
    by_measured: list[tuple[Configuration, float, float, float]] = sorted(
        now, key=lambda one: one[1]
    )
    for faster, slower in itertools.combinations(by_measured, 2):
        is_apart = slower[1] > (1 + APART) * faster[1]
        if is_apart and faster[2] < slower[2] and faster[3] > slower[3]:
            yield (
                f"order: {faster[0]} was measured faster than {slower[0]}, and was predicted so; "
                "now it isn't"
            )
