"""All legal ways to spread a workload over GPUs, counted exactly, and why the others are not
legal.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache

import numpy as np

from ditplan.planner.network.topology import Topology
from ditplan.planner.network.traffic import is_even
from ditplan.planner.space.approximations import ApproximationPolicy
from ditplan.planner.space.candidate import Choice, Settings, Space
from ditplan.planner.space.legality import (
    CFG_REASON,
    Violation,
    degrees_within,
    first_broken,
    rules_of,
    schedule_of,
    violation,
)
from ditplan.planner.space.stage_blocks import unfolded
from ditplan.profiles.backends import LoadedBackend
from ditplan.profiles.capabilities import Capabilities
from ditplan.profiles.configuration import Configuration, PipeFusion, Schedule
from ditplan.profiles.errors import Part, Sentence, Setting
from ditplan.profiles.family import family_of
from ditplan.profiles.limits import warmup_excess
from ditplan.profiles.mesh import AXES, Mesh, axis_orders, placement_of
from ditplan.profiles.model import Mode, ModelSpec
from ditplan.profiles.splits import patch_bounds, split_sizes
from ditplan.profiles.workload import Workload

EXHAUSTIVE_RANKS = 16
"""All legal meshes of up to so many ranks are tried, and of a host's."""


def why_illegal(
    mesh: Mesh,
    spec: ModelSpec,
    workload: Workload,
    gpus: int | None,
    backend: LoadedBackend,
    *,
    approximate: bool = False,
) -> str | None:
    """One sentence that says why a mesh can't run and what would be right; None for a legal one.

    `gpus` is the number that the mesh must use; None accepts any. `approximate` says whether
    another result than one device's is allowed.
    """
    if gpus is not None and mesh.size != gpus:
        return Sentence(
            f"{mesh} needs {_count(mesh.size, 'GPU')}, {gpus} {'was' if gpus == 1 else 'were'} "
            f"asked for: the degrees must multiply to {gpus}",
            *_example(spec, workload, gpus, backend.capabilities),
            ", or ask for ",
            Setting("gpus", mesh.size),
        )
    capabilities = backend.capabilities
    found = violation(mesh, spec, workload, capabilities, approximate=approximate)
    if not found:
        part = evenly_staged(mesh, spec, mesh.pipefusion, 1, schedule_of(spec, capabilities))
        usual = Configuration(mesh, placement_of(mesh), capabilities.modes[0], pipefusion=part)
        return backend.why_unsupported(usual, spec, workload)
    is_off = found.reason == CFG_REASON and workload.passes == 1 and _has_passes_to_split(spec)
    return Sentence(found.sentence, " (guidance is off)" if is_off else "")


def patching_violation(
    mesh: Mesh, spec: ModelSpec, workload: Workload, patches: int, warmup_steps: int
) -> Violation | None:
    """The first rule that PipeFusion's settings break on a legal mesh."""
    if wrong := warmup_excess(warmup_steps, workload):
        return Violation("warm-up steps > steps", wrong)
    tokens, text = spec.image_tokens(workload), spec.text_tokens(workload)
    ranks = mesh.sequence_parallel
    if patches <= tokens and _smallest_patch(tokens, text, patches) >= ranks:
        return None
    each = f"{ranks} (ring x ulysses)" if ranks > 1 else "one"
    return Violation(
        "patch tokens < ranks",
        Sentence(
            Setting("patches", patches),
            f": {spec.name}'s {tokens} image tokens, with {text} of text in the first patch, don't "
            f"give each patch at least {each}; use fewer patches",
        ),
    )


@cache
def _smallest_patch(tokens: int, text: int, patches: int) -> int:
    return min(end - start for start, end in patch_bounds(tokens, text, patches))


def legal_meshes(
    spec: ModelSpec,
    workload: Workload,
    gpus: int,
    capabilities: Capabilities,
    *,
    pins: Mapping[str, int] | None = None,
    exactly: bool = False,
    approximate: bool = False,
) -> tuple[tuple[Mesh, ...], dict[str, int]]:
    """Legal meshes of at most (or exactly) so many GPUs, small ones first, and the others
    counted by reason.
    """
    axes = capabilities.axes if approximate else capabilities.exact_axes
    one_picture = {"dp": 1} if workload.batch == 1 else {}
    rules, pinned = rules_of(spec, workload, capabilities), one_picture | dict(pins or {})
    degrees = degrees_within(gpus, axes, pinned)
    if exactly:
        degrees = degrees[degrees.prod(axis=1) == gpus]
    broken = first_broken(rules, degrees)
    sizes = degrees.prod(axis=1)
    small_first = np.lexsort((*degrees.T[::-1], sizes))
    dropped = Counter(rules[number].reason for number in broken.tolist() if number < len(rules))
    legal: list[Mesh] = []
    for row in degrees[small_first[broken[small_first] == len(rules)]].tolist():
        mesh = Mesh(**dict(zip(AXES, row, strict=True)))
        # pins can ask for what the backend doesn't have
        found = (
            violation(mesh, spec, workload, capabilities, approximate=approximate) if pins else None
        )
        if found:
            dropped[found.reason] += 1
        else:
            legal.append(mesh)
    return tuple(legal), dict(dropped)


def enumerate_space(
    spec: ModelSpec,
    workload: Workload,
    topology: Topology,
    gpus: int,
    backend: LoadedBackend,
    *,
    pins: Mapping[str, int] | None = None,
    modes: Sequence[Mode] = ("eager",),
    exactly: bool = False,
    allowed: ApproximationPolicy | None = None,
) -> Space:
    """All legal meshes x settings of PipeFusion x placements that differ x modes.

    Without `allowed` exact plans only.
    """
    meshes, dropped = legal_meshes(
        spec,
        workload,
        gpus,
        backend.capabilities,
        pins=pins,
        exactly=exactly,
        approximate=allowed is not None,
    )

    @cache
    def settings_of(stages: int, ranks: int) -> Settings | Violation:
        """The same for all meshes of so many stages and ranks of a sequence."""
        mesh = Mesh(pipefusion=stages, ulysses=ranks)
        parts = _pipefusion_parts(mesh, spec, workload, allowed, backend.capabilities)
        return parts if isinstance(parts, Violation) else tuple(itertools.product(parts, modes))

    choices: list[Choice] = []
    uneven: list[tuple[str, Choice]] = []
    for mesh in meshes:
        settings = settings_of(mesh.pipefusion, mesh.sequence_parallel)
        if isinstance(settings, Violation):
            dropped[settings.reason] = dropped.get(settings.reason, 0) + 1
            continue
        placement = placement_of(mesh)
        supported = tuple(
            (part, mode)
            for part, mode in settings
            if not backend.why_unsupported(
                Configuration(mesh, placement, mode, pipefusion=part), spec, workload
            )
        )
        if not supported:
            reason = f"not supported by {backend.name}"
            dropped[reason] = dropped.get(reason, 0) + 1
            continue
        orders = axis_orders(mesh)
        if mesh.size > max(EXHAUSTIVE_RANKS, topology.ranks_per_host):
            is_part = mesh.size % topology.ranks_per_host
            even = () if is_part else _even_orders(mesh, orders, topology.ranks_per_host)
            if not even:
                reason = "fills a host partly" if is_part else "fills hosts unevenly"
                uneven.append((reason, Choice(mesh, supported, orders)))
                continue
            orders = even
        choices.append(Choice(mesh, supported, orders))
    if choices:
        for reason, _ in uneven:
            dropped[reason] = dropped.get(reason, 0) + 1
    choices = choices or [choice for _, choice in uneven]
    return Space(tuple(choices), topology, dropped)


def _even_orders(
    mesh: Mesh, orders: Sequence[tuple[str, ...]], ranks_per_host: int
) -> tuple[tuple[str, ...], ...]:
    """Those of which the groups along each axis have as many ranks on each host that they reach."""
    degrees = dict(zip(AXES, mesh.degrees, strict=True))

    def is_even_in(order: tuple[str, ...]) -> bool:
        stride = 1
        for axis in reversed(order):
            degree = degrees[axis]
            if degree > 1 and not is_even(degree, stride, ranks_per_host):
                return False
            stride *= degree
        return True

    return tuple(filter(is_even_in, orders))


def evenly_staged(
    mesh: Mesh, spec: ModelSpec, patches: int, warmup_steps: int, schedule: Schedule = "linear"
) -> PipeFusion | None:
    """A mesh's PipeFusion part with about as many blocks in each stage, if it has stages."""
    if mesh.pipefusion == 1:
        return None
    return _evenly_staged(mesh.pipefusion, spec.block_count, patches, warmup_steps, schedule)


@cache
def _evenly_staged(
    stages: int, blocks: int, patches: int, warmup_steps: int, schedule: Schedule
) -> PipeFusion:
    if schedule == "folded":
        divided = unfolded(split_sizes(math.ceil(blocks / 2), stages), blocks)
    else:
        divided = split_sizes(blocks, stages)
    return PipeFusion(
        blocks_per_stage=divided, patches=patches, warmup_steps=warmup_steps, schedule=schedule
    )


def baseline_of(
    candidates: Sequence[Configuration],
    spec: ModelSpec,
    workload: Workload,
    topology: Topology,
    own: Mesh | None = None,
) -> Configuration:
    """What is run without a search, among the candidates: the baseline that it must beat.

    The engine's `own` choice where it has one that is a candidate; else what users choose by hand,
    as xDiT's and SGLang's guides advise: all GPUs, cfg 2 first when there is guidance, then ulysses
    as far as heads divide and the host reaches, ring over the rest, ranks in the usual order.
    Of candidates that differ in nothing of this the first counts.
    """
    host = topology.ranks_per_host

    def advised(candidate: Configuration) -> tuple[int, ...]:
        mesh = candidate.mesh
        usual_ulysses = (
            mesh.ulysses if spec.heads % mesh.ulysses == 0 and mesh.ulysses <= host else 0
        )
        return (
            mesh == own,
            mesh.size,
            mesh.cfg == min(2, workload.passes),
            mesh.pipefusion == 1,
            usual_ulysses,
            candidate.order == AXES,
        )

    return max(candidates, key=advised)


def _pipefusion_parts(
    mesh: Mesh,
    spec: ModelSpec,
    workload: Workload,
    allowed: ApproximationPolicy | None,
    capabilities: Capabilities,
) -> list[PipeFusion | None] | Violation:
    """The settings of PipeFusion to try on a mesh, or why there are none."""
    if mesh.pipefusion == 1 or allowed is None:
        return [None]
    parts: list[PipeFusion | None] = []
    why = Violation(
        "no PipeFusion keeps the bound",
        Sentence(
            f"no setting of PipeFusion that was measured on {spec.name} keeps ",
            Setting("quality", allowed.bound),
            "; leave pipefusion at 1, or allow more",
        ),
    )
    schedule = schedule_of(spec, capabilities)
    for patches, warmup_steps in allowed.settings(mesh.pipefusion):
        found = patching_violation(mesh, spec, workload, patches, warmup_steps)
        if found:
            why = found
        else:
            parts.append(evenly_staged(mesh, spec, patches, warmup_steps, schedule))
    return parts or why


def why_no_setting(
    mesh: Mesh,
    spec: ModelSpec,
    workload: Workload,
    allowed: ApproximationPolicy | None,
    capabilities: Capabilities,
) -> str | None:
    """Why no allowed setting of PipeFusion can run on a legal mesh; None if one can."""
    found = _pipefusion_parts(mesh, spec, workload, allowed, capabilities)
    return found.sentence if isinstance(found, Violation) else None


def _has_passes_to_split(spec: ModelSpec) -> bool:
    """Whether guidance, when it is on, makes more than one pass a step."""
    return family_of(spec.transformer_class).guidance != "embedded"


def _example(
    spec: ModelSpec, workload: Workload, gpus: int, capabilities: Capabilities
) -> Iterator[Part]:
    """Such as `, such as cfg=2 ulysses=4`, when there is a legal mesh of so many GPUs."""
    legal, _ = legal_meshes(spec, workload, gpus, capabilities, exactly=True)
    if gpus == 1 or not legal:
        return
    best = max(legal, key=lambda mesh: (mesh.cfg == min(2, workload.passes), mesh.ulysses))
    yield ", such as"
    for axis, degree in zip(AXES, best.degrees, strict=True):
        if degree > 1:
            yield from (" ", Setting(axis, degree))


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
