"""Prices every candidate of a task, and says which ones don't fit."""

import gc
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from ditplan.planner.cost.memory import why_swapping, why_too_big
from ditplan.planner.cost.profile_points import wanted_points
from ditplan.planner.cost_model import CostModel
from ditplan.planner.network.subsets import Subsets
from ditplan.planner.network.topology import Topology
from ditplan.planner.search.elsewhere import Elsewhere
from ditplan.planner.search.pareto_front import ParetoFront
from ditplan.planner.search.pruning import LARGE_CLUSTER, undominated
from ditplan.planner.search.ranking import EXACT, PricedCandidate, sortable_s
from ditplan.planner.search.seating import Seats, best_seated, priced_on_seats, worth
from ditplan.planner.simulation.timeline import Timeline
from ditplan.planner.space.approximations import PIPEFUSION_S, quality_of, quality_with_cache
from ditplan.planner.space.candidate import Choice, Space
from ditplan.planner.space.enumerate import (
    baseline_of,
    enumerate_space,
    evenly_staged,
    patching_violation,
    why_illegal,
    why_no_setting,
)
from ditplan.planner.space.legality import schedule_of
from ditplan.planner.task import Task
from ditplan.profiles.backends import require_supported
from ditplan.profiles.capabilities import require_mode
from ditplan.profiles.cluster import Device
from ditplan.profiles.configuration import Configuration, PipeFusion, TaylorSeer
from ditplan.profiles.errors import InputError, Setting
from ditplan.profiles.mesh import Mesh, placement_of
from ditplan.profiles.model import Mode, PointRequest
from ditplan.profiles.plan import Quality

PRICED_RANKS = 6
"""Meshes of up to so many ranks are all priced."""


def price_all(task: Task, topology: Topology) -> tuple[list[PricedCandidate], dict[str, int]]:
    """All legal candidates, fastest first, and how many meshes were dropped for each reason.

    Those that don't fit into the memory of GPUs come last and say so; CPUs can swap, so there they
    only carry a warning. The rule of thumb among those that fit, in the mode in which it is
    fastest, is marked as the baseline.

    Raises:
        InputError: no mesh is legal with these pins, none fits, or the cluster profile lacks
            something.
    """
    with _no_collecting():
        space, model = space_of(task, topology), cost_model_of(task, topology)
        priced, unpriced = _price_space(task, space, model)
    fitting = [ranked for ranked in priced if not ranked.too_big]
    if not fitting:
        raise InputError(_why_none_fits(task, priced))
    candidates = [ranked.configuration for ranked in sorted(fitting, key=_by_latency)]
    priced += _with_step_caches(task, model, fitting)
    baseline = baseline_of(candidates, task.spec, task.workload, topology, task.own_choice)
    marked = [replace(r, is_baseline=True) if r.configuration is baseline else r for r in priced]
    dropped = dict(space.dropped)
    if unpriced:
        dropped["can't be among the best"] = unpriced
    if too_big := sum(ranked.too_big is not None for ranked in priced):
        dropped["does not fit in memory"] = too_big
    return sorted(marked, key=_by_latency), dropped


def _why_none_fits(task: Task, priced: Iterable[PricedCandidate]) -> str:
    """What the smallest candidate needs, what of it no mesh makes smaller, and what would do."""
    least = min(priced, key=lambda ranked: ranked.prediction.memory_bytes)
    spec = task.spec
    encoders_bytes = spec.encoder_parameters * task.workload.dtype_bytes
    enough = math.ceil(least.prediction.memory_bytes / 1e9)
    return (
        f"{spec.name} fits on no device of {task.cluster.name} in any way; the smallest, "
        f"{least.configuration.mesh}, {least.too_big}; every rank holds the text encoders, "
        f"{encoders_bytes / 1e9:.1f} GB; use devices of {enough} GB or more, a smaller picture or "
        "batch"
    )


def _with_step_caches(
    task: Task, model: CostModel, fitting: Iterable[PricedCandidate]
) -> list[PricedCandidate]:
    """Exact plans with each step cache that is allowed."""
    if task.allowed is None or not task.backend.capabilities.caches_steps:
        return []
    exact = [ranked.configuration for ranked in fitting if ranked.configuration.pipefusion is None]
    return [
        priced_as_is(task, model, replace(candidate, step_cache=cache))
        for candidate in exact
        for cache in task.allowed.step_caches
    ]


@contextmanager
def _no_collecting() -> Iterator[None]:
    """Keeps the garbage collector from going through meshes and prices again and again: they have
    no cycles, and it would take a fifth of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _price_space(task: Task, space: Space, model: CostModel) -> tuple[list[PricedCandidate], int]:
    """The candidates of a space with their prices, and how many meshes were left out because what
    they cost at least is no better than what is priced: they can't be the fastest, nor the one with
    the fewest GPUs that is fast enough, nor one that no other beats.
    """
    priced: list[PricedCandidate] = []
    front, bounds = ParetoFront(), model.lower_bounds(task.workload)
    baseline, unpriced = _advised(task, space), 0
    is_large = (task.gpus or space.topology.ranks) > LARGE_CLUSTER
    seats: Seats = {}
    quality_of, price = partial(_quality_of_part, task), partial(_price, task, model)
    elsewhere = Elsewhere(Subsets(space.topology), front, bounds, quality_of, price)
    for size, of_size in itertools.groupby(space.choices, key=lambda choice: choice.mesh.size):
        choices, on_first = list(of_size), list[PricedCandidate]()
        for choice in choices:
            tried: Iterable[Choice] = (choice,)
            if size > PRICED_RANKS and choice.mesh != baseline:
                tried = undominated(choice, front, bounds, quality_of, is_large=is_large)
            before = len(on_first)
            for one in tried:
                found = priced_on_seats(space, one, seats, price)
                for ranked in best_seated(found) if space.topology.has_different_devices else found:
                    on_first.append(ranked)
                    _note(front, ranked)
            unpriced += len(on_first) == before
        priced += on_first
        # copies that run at once fill the cluster from its first rank on; where all of many GPUs
        # may be used, few are hardly the best
        if task.objective.name != "throughput" and not is_large:
            for ranked in elsewhere.priced(choices, on_first):
                priced.append(ranked)
                _note(front, ranked)
    return priced, unpriced


def _note(front: ParetoFront, ranked: PricedCandidate) -> None:
    """Notes a plan that later ones have to beat, if it fits."""
    if not ranked.too_big:
        front.add(ranked.prediction.latency_s, ranked.prediction.memory_bytes, ranked.quality)


def _advised(task: Task, space: Space) -> Mesh:
    """The mesh that the rule of thumb takes if it fits."""
    usual = [Configuration(choice.mesh, (), choice.settings[0][1]) for choice in space.choices]
    return baseline_of(usual, task.spec, task.workload, space.topology, task.own_choice).mesh


def _quality_of(task: Task, candidate: Configuration) -> Quality:
    if candidate.step_cache:
        return quality_with_cache(task.known, candidate.step_cache)
    return _quality_of_part(task, candidate.pipefusion)


def _quality_of_part(task: Task, part: PipeFusion | None) -> Quality:
    return quality_of(task.known, part.patches, part.warmup_steps) if part else EXACT


def space_of(task: Task, topology: Topology) -> Space:
    """The legal candidates of a task.

    Raises:
        InputError: more GPUs than there are, or no mesh is legal with these pins.
    """
    _check_gpus(task, topology)
    gpus = task.gpus or topology.ranks
    pinned = Mesh(**task.pins)
    if pinned.size > gpus:
        raise InputError(
            f"the degrees asked for, {pinned}, need {pinned.size} GPUs and there are {gpus}; "
            "ask for smaller ones"
        )
    _check_vae_ranks(task, gpus)
    space = enumerate_space(
        task.spec,
        task.workload,
        topology,
        gpus,
        task.backend,
        pins=task.pins,
        modes=task.searched_modes,
        allowed=task.allowed,
    )
    if not space.choices:
        approximate = task.allowed is not None
        why = why_illegal(
            pinned, task.spec, task.workload, None, task.backend, approximate=approximate
        ) or why_no_setting(
            pinned, task.spec, task.workload, task.allowed, task.backend.capabilities
        )
        raise InputError(why or f"no mesh of at most {gpus} GPUs is legal: {space.dropped}")
    return space


def points_to_measure(task: Task) -> Sequence[PointRequest]:
    """The shapes of blocks whose times the task's candidates need.

    Raises:
        InputError: as `space_of`.
    """
    choices = space_of(task, Topology(task.cluster)).choices
    # warm-up steps run what the mesh would without patches
    meshes = {choice.mesh for choice in choices}
    settings = [(choice.mesh, part) for choice in choices for part, _ in choice.settings]
    patched = {(mesh, part.patches) for mesh, part in settings if part}
    return wanted_points(task.spec, task.workload, meshes, task.searched_modes, patched)


def price_one(
    task: Task,
    mesh: Mesh,
    mode: Mode,
    *,
    patches: int | None = None,
    warmup_steps: int | None = None,
    model: CostModel | None = None,
) -> PricedCandidate:
    """One configuration on the cluster's first ranks, in the usual order.

    `task.gpus` is the number that the mesh must use, None for any; pins, modes and what is allowed
    have no say. PipeFusion has as many patches as stages and one warm-up step if not said
    otherwise. That it doesn't fit into memory is information, not an error. `model` is the task's
    cost model, where there is one already.

    Raises:
        InputError: the backend can't run the mesh or the mode, the cluster has fewer GPUs, or its
            profile lacks something.
    """
    topology = model.topology if model else Topology(task.cluster)
    _check_gpus(task, topology)
    spec, workload = task.spec, task.workload
    if wrong := why_illegal(mesh, spec, workload, task.gpus, task.backend, approximate=True):
        raise InputError(wrong)
    require_mode(task.backend.capabilities, mode, task.device_kind)
    if mesh.size > topology.ranks:
        raise InputError(
            f"{mesh} needs {mesh.size} GPUs, cluster {task.cluster.name} has {topology.ranks}; "
            "use smaller degrees or a larger cluster"
        )
    if mesh.pipefusion == 1 and (patches is not None or warmup_steps is not None):
        stages = Setting("pipefusion", "2 or more")
        raise InputError(*PIPEFUSION_S, ": give ", stages, ", or leave them out")
    _check_vae_ranks(task, mesh.size)
    patches = mesh.pipefusion if patches is None else patches
    warmup_steps = 1 if warmup_steps is None else warmup_steps
    part = evenly_staged(
        mesh, spec, patches, warmup_steps, schedule_of(spec, task.backend.capabilities)
    )
    if part and (found := patching_violation(mesh, spec, workload, patches, warmup_steps)):
        raise InputError(found.sentence)
    asked = Configuration(mesh, placement_of(mesh), mode, pipefusion=part)
    require_supported(task.backend, asked, spec, workload)
    return _price(task, model or cost_model_of(task, topology), asked)


def price_choice(
    task: Task, model: CostModel, space: Space, choice: Choice, cache: TaylorSeer | None = None
) -> PricedCandidate:
    """A choice's one setting in its one order, with a step cache or none: seated best where devices
    differ.

    Raises:
        InputError: the cluster profile lacks something.
    """
    best = min((_price(task, model, one) for one in space.placed(choice)), key=worth)
    if cache is None:
        return best
    return priced_as_is(task, model, replace(best.configuration, step_cache=cache))


def timeline_of(task: Task, candidate: Configuration) -> Timeline:
    """When each rank and each link does what in a candidate's loop, by what it was priced with.

    Raises:
        InputError: the cluster profile lacks something.
    """
    model = cost_model_of(task, Topology(task.cluster))
    return model.timeline(candidate, task.workload)


def _check_gpus(task: Task, topology: Topology) -> None:
    if task.gpus is not None and task.gpus > topology.ranks:
        raise InputError(
            f"{task.gpus} GPUs were asked for, cluster {task.cluster.name} has {topology.ranks}; "
            "use ",
            Setting("gpus", f"{topology.ranks} or less"),
        )


def _check_vae_ranks(task: Task, ranks: int) -> None:
    if task.vae_parallel > ranks:
        raise InputError(
            Setting("vae_parallel", task.vae_parallel),
            f": there {'are' if ranks > 1 else 'is'} {ranks} to decode; use that or less",
        )


def cost_model_of(task: Task, topology: Topology) -> CostModel:
    """Prices the task's model on its cluster as its backend runs it."""
    return CostModel(topology, task.spec, task.profile, constants=task.backend.costs)


def _price(task: Task, model: CostModel, candidate: Configuration) -> PricedCandidate:
    """With weights on every rank, or in pieces on all of them where these don't fit."""
    found = _price_shares(task, model, candidate)
    if found.too_big and task.backend.capabilities.shards_weights and candidate.can_share_weights:
        return _price_shares(task, model, replace(candidate, weights="sharded"))
    return found


def _price_shares(task: Task, model: CostModel, candidate: Configuration) -> PricedCandidate:
    """With blocks and tokens shared out as is best: by speed, or equally if that is faster or what
    fits.
    """
    if not task.backend.capabilities.balances:
        return priced_as_is(task, model, candidate)
    equal = priced_as_is(task, model, model.balanced(candidate, task.workload))
    shared = model.shared_by_speed(candidate, task.workload)
    if shared.token_shares is None:
        return equal
    by_speed = priced_as_is(task, model, model.balanced(shared, task.workload))
    return min(by_speed, equal, key=worth)


def priced_as_is(task: Task, model: CostModel, candidate: Configuration) -> PricedCandidate:
    """A candidate with its blocks on the stages that it says.

    Raises:
        InputError: the cluster profile lacks something.
    """
    chooses = task.backend.capabilities.chooses_kernels
    candidate = replace(
        candidate,
        attention=model.attention_kernel(candidate, task.workload) if chooses else "auto",
        ring=model.ring_variant(candidate),
        vae_parallel=min(task.vae_parallel, candidate.mesh.size),
    )
    quality = _quality_of(task, candidate)
    is_unknown = not quality.exact and quality.relative_l2 is None
    return PricedCandidate(
        candidate,
        model.price(candidate, task.workload),
        task.fallback,
        too_big=_why_too_big(task, model, candidate),
        warning=_why_swapping(task, model, candidate),
        quality=quality,
        must_lead=is_unknown and task.allowed is not None and task.allowed.prefers_exact,
    )


def _why_too_big(task: Task, model: CostModel, candidate: Configuration) -> str | None:
    """Why the GPU with the least memory of a stage doesn't hold its part of a candidate.

    None if all do, or there is no GPU.
    """
    devices = model.devices_of(candidate)
    places: Iterable[tuple[int | None, list[Device]]] = [(None, devices)]
    if len(devices) > 1:
        places = enumerate(model.devices_of_stages(candidate))
    for stage, there in places:
        gpus = [device for device in there if device.kind != "cpu"]
        if not gpus:
            continue
        smallest = min(gpus, key=lambda device: device.memory_bytes)
        memory = model.memory(candidate, task.workload, smallest, stage)
        if why := why_too_big(memory, smallest):
            return why
    return None


def _why_swapping(task: Task, model: CostModel, candidate: Configuration) -> str | None:
    """What the first host whose CPUs need more memory than it has lacks; None if none does."""
    if all(device.kind != "cpu" for device in model.devices_of(candidate)):
        return None
    first = 0
    for host in task.cluster.hosts:
        ranks = range(first, first + len(host.devices))
        first = ranks.stop
        used = sum(rank in ranks for rank in candidate.placement)
        if not used or host.devices[0].kind != "cpu":
            continue
        memory = model.memory(candidate, task.workload, host.devices[0])
        if why := why_swapping(memory, used, host):
            return why
    return None


def _by_latency(ranked: PricedCandidate) -> tuple[object, ...]:
    mesh = ranked.configuration.mesh
    place = ranked.configuration.placement
    return (
        ranked.too_big is not None,
        sortable_s(ranked.prediction.latency_s),
        mesh.size,
        mesh.degrees,
        place,
    )
