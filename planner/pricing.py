"""Prices every candidate of a task, and says which ones don't fit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ditplan.planner.cost import CostModel
from ditplan.planner.memory import memory_of, why_too_big
from ditplan.planner.ranking import Ranked, sortable_s
from ditplan.planner.space import Candidate, Space, enumerate_space, rule_of_thumb, why_illegal
from ditplan.planner.topology import Topology
from ditplan.profiles.backends import BACKENDS, Backend
from ditplan.profiles.cluster import ClusterProfile, Device
from ditplan.profiles.errors import InputError
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import Mode, ModelProfile, ModelSpec
from ditplan.profiles.workload import Workload


@dataclass(frozen=True)
class Task:
    """What to plan: a model's workload on at most `gpus` devices of a cluster (all of them if
    None).

    `pins` are degrees that the user fixed, `modes` the execution modes to choose from (the
    backend's if None).
    """

    spec: ModelSpec
    workload: Workload
    cluster: ClusterProfile
    gpus: int | None = None
    pins: Mapping[str, int] = field(default_factory=dict)
    modes: tuple[Mode, ...] | None = None
    backend: Backend = BACKENDS["native"]
    profile: ModelProfile | None = None


def price_all(task: Task, topology: Topology) -> tuple[list[Ranked], dict[str, int]]:
    """All legal candidates, fastest first, and how many meshes were dropped for each reason.

    Those that don't fit into memory come last and say so; the rule of thumb among those that do is
    marked as control.

    Raises:
        InputError: no mesh is legal with these pins, none fits, or the cluster profile lacks
            something.
    """
    space = space_of(task, topology)
    model = CostModel(topology, task.spec, task.profile)
    devices = task.cluster.devices
    priced = [_price(task, model, candidate, devices) for candidate in space.candidates]
    fitting = [ranked for ranked in priced if not ranked.too_big]
    if not fitting:
        least = min(priced, key=lambda ranked: ranked.prediction.memory_bytes)
        raise InputError(
            f"{task.spec.name} fits on no device of {task.cluster.name} in any way; the smallest, "
            f"{least.candidate.mesh}, {least.too_big}; use larger devices, a smaller picture or "
            "batch"
        )
    candidates = [ranked.candidate for ranked in fitting]
    control = rule_of_thumb(candidates, task.spec, task.workload, topology)
    marked = [replace(ranked, control=ranked.candidate == control) for ranked in priced]
    dropped = dict(space.dropped)
    if len(fitting) < len(priced):
        dropped["does not fit in memory"] = len(priced) - len(fitting)
    return sorted(marked, key=_by_latency), dropped


def space_of(task: Task, topology: Topology) -> Space:
    """The legal candidates of a task.

    Raises:
        InputError: more GPUs than there are, or no mesh is legal with these pins.
    """
    gpus = task.gpus or topology.ranks
    if gpus > topology.ranks:
        raise InputError(
            f"{gpus} GPUs were asked for, cluster {task.cluster.name} has {topology.ranks}; "
            f"use --gpus {topology.ranks} or less"
        )
    pinned = Mesh(**task.pins)
    if pinned.size > gpus:
        raise InputError(
            f"the degrees asked for, {pinned}, need {pinned.size} GPUs and there are {gpus}; "
            "ask for smaller ones"
        )
    space = enumerate_space(
        task.spec, task.workload, topology, gpus, task.backend, pins=task.pins, modes=task.modes
    )
    if not space.candidates:
        why = why_illegal(pinned, task.spec, task.workload, None, task.backend)
        raise InputError(why or f"no mesh of at most {gpus} GPUs is legal: {space.dropped}")
    return space


def _price(task: Task, model: CostModel, candidate: Candidate, devices: Sequence[Device]) -> Ranked:
    used = (devices[rank] for rank in candidate.placement)
    smallest = min(used, key=lambda device: device.memory_bytes)
    memory = memory_of(task.spec, task.workload, candidate.mesh, smallest)
    prediction = model.price(candidate, task.workload)
    return Ranked(candidate, prediction, too_big=why_too_big(memory, smallest))


def _by_latency(ranked: Ranked) -> tuple[object, ...]:
    mesh = ranked.candidate.mesh
    place = ranked.candidate.placement
    return (
        ranked.too_big is not None,
        sortable_s(ranked.prediction.latency_s),
        mesh.size,
        mesh.degrees,
        place,
    )
