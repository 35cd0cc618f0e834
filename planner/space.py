"""All legal ways to spread a workload over GPUs, counted exactly, and why the others are not
legal.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ditplan.planner.allowed import Allowed, warmup_excess
from ditplan.planner.topology import Topology
from ditplan.profiles.backends import Backend
from ditplan.profiles.family import family_of
from ditplan.profiles.mesh import AXES, Mesh
from ditplan.profiles.model import Mode, ModelSpec
from ditplan.profiles.plan import PipeFusion
from ditplan.profiles.splits import patch_bounds, split_sizes
from ditplan.profiles.workload import Workload

CFG_REASON = "cfg > passes"


@dataclass(frozen=True)
class Candidate:
    """A mesh on certain ranks in an execution mode.

    `order` lists the axes from the one whose neighbours are farthest apart in rank to the one whose
    are next to each other; `placement` is what follows from it, the rank of each mesh coordinate.
    A mesh with pipefusion stages has a `pipefusion` part.
    """

    mesh: Mesh
    placement: tuple[int, ...]
    mode: Mode = "eager"
    order: tuple[str, ...] = AXES
    pipefusion: PipeFusion | None = None

    def __str__(self) -> str:
        """Such as `cfg2 x ulysses4, eager`, with the order of the axes where it isn't the usual
        one, and PipeFusion's settings.
        """
        placed = "" if self.order == AXES else f", {self.order_text}"
        patched = f", {self.pipefusion}" if self.pipefusion else ""
        return f"{self.mesh}, {self.mode}{placed}{patched}"

    @property
    def order_text(self) -> str:
        """The axes that are split, far neighbours first, such as `ulysses > cfg`."""
        return " > ".join(axis for axis in self.order if getattr(self.mesh, axis) > 1)


@dataclass(frozen=True)
class Space:
    """Legal candidates, and how many meshes were dropped for each reason.

    Stages of PipeFusion have about the same number of blocks, whatever these take.
    """

    candidates: tuple[Candidate, ...]
    dropped: dict[str, int]


@dataclass(frozen=True)
class Violation:
    """Why a mesh is not legal: a short reason to count by and a sentence that says what would
    be right.
    """

    reason: str
    sentence: str


def why_illegal(
    mesh: Mesh,
    spec: ModelSpec,
    workload: Workload,
    gpus: int | None,
    backend: Backend,
    *,
    approximate: bool = False,
) -> str | None:
    """One sentence that says why a mesh can't run and what would be right; None for a legal one.

    `gpus` is the number that the mesh must use; None accepts any. `approximate` says whether
    another result than one device's is allowed.
    """
    if gpus is not None and mesh.size != gpus:
        return (
            f"{mesh} needs {_count(mesh.size, 'GPU')}, {gpus} {'was' if gpus == 1 else 'were'} "
            f"asked for: the degrees must multiply to {gpus}"
            f"{_example(spec, workload, gpus, backend)}, or ask for --gpus {mesh.size}"
        )
    found = violation(mesh, spec, workload, backend, approximate=approximate)
    if not found:
        return None
    is_off = found.reason == CFG_REASON and workload.passes == 1 and _has_passes_to_split(spec)
    return f"{found.sentence}{' (guidance is off)' if is_off else ''}"


def violation(
    mesh: Mesh,
    spec: ModelSpec,
    workload: Workload,
    backend: Backend,
    *,
    approximate: bool = False,
) -> Violation | None:
    """The first rule that a mesh breaks, whatever the number of GPUs.

    Axes that give another result than one device are against the rules unless `approximate`.
    """
    for axis, degree in zip(AXES, mesh.degrees, strict=True):
        if degree > 1 and axis not in backend.axes:
            return Violation(
                f"{axis} not in {backend.name}",
                f"backend {backend.name} can't run {axis}{degree}: it has "
                f"{', '.join(backend.axes)}; leave {axis} at 1",
            )
        if degree > 1 and axis in backend.approximate_axes and not approximate:
            return Violation(
                f"{axis} not exact",
                f"{axis}{degree} gives another result than one device, and only exact plans are "
                f"allowed: use --quality safe, or leave {axis} at 1",
            )
    family = family_of(spec.transformer_class)
    if mesh.pipefusion > 1 and backend.staged_families is not None:
        if family.name not in backend.staged_families:
            return Violation(
                "no stages for this model",
                f"{spec.name} can't run with pipefusion on backend {backend.name}; leave it at 1",
            )
    elif mesh.pipefusion > 1 and family.no_pipefusion:
        return Violation(
            "no stages for this model",
            f"{spec.name} can't run with pipefusion: {family.no_pipefusion}; leave it at 1",
        )
    if mesh.pipefusion > 1 and mesh.cfg > 1 and family.guidance == "calls":
        return Violation(
            "cfg with pipefusion",
            f"{spec.name} makes a call for each pass, which can't be split over cfg together with "
            "pipefusion; leave one of them at 1",
        )
    ranks, image = mesh.sequence_parallel, spec.image_tokens(workload)
    rules = (
        ("dp > pictures", "dp", mesh.dp, workload.batch, "pictures a batch"),
        (CFG_REASON, "cfg", mesh.cfg, workload.passes, "passes a step"),
        ("ulysses > heads", "ulysses", mesh.ulysses, spec.heads, "attention heads"),
        ("pipefusion > blocks", "pipefusion", mesh.pipefusion, spec.block_count, "blocks"),
        (
            "ranks > image tokens",
            "ring x ulysses",
            ranks,
            workload.height // spec.pixels_per_token if spec.is_linear else image,
            "rows of image tokens" if spec.is_linear else "image tokens",
        ),
        (
            "ranks > text tokens",
            "ring x ulysses",
            ranks,
            spec.text_tokens(workload) or ranks,
            "text tokens",
        ),
    )
    for reason, what, degree, limit, things in rules:
        if degree > limit:
            return Violation(
                reason,
                f"{what} is {degree}, but {spec.name} has {limit} {things}: use at most {limit}",
            )
    return None


def patching_violation(
    mesh: Mesh, spec: ModelSpec, workload: Workload, patches: int, warmup_steps: int
) -> Violation | None:
    """The first rule that PipeFusion's settings break on a legal mesh."""
    if wrong := warmup_excess(warmup_steps, workload):
        return Violation("warm-up steps > steps", wrong)
    tokens, text = spec.image_tokens(workload), spec.text_tokens(workload)
    ranks = mesh.sequence_parallel
    if patches <= tokens:
        bounds = patch_bounds(tokens, text, patches)
        if min(end - start for start, end in bounds) >= ranks:
            return None
    each = f"{ranks} (ring x ulysses)" if ranks > 1 else "one"
    return Violation(
        "patch tokens < ranks",
        f"--patches {patches}: {spec.name}'s {tokens} image tokens, with {text} of "
        f"text in the first patch, don't give each patch at least {each}; use fewer patches",
    )


def degrees_within(gpus: int, axes: Sequence[str], pins: Mapping[str, int]) -> Iterator[Mesh]:
    """All meshes of at most so many GPUs over some axes.

    Pinned axes keep their degree, all others are 1.
    """
    free = [axis for axis in axes if axis not in pins]
    fixed = {axis: degree for axis, degree in pins.items() if degree > 1}
    room = gpus // math.prod(fixed.values())
    for degrees in _products_within(room, len(free)):
        yield Mesh(**fixed, **dict(zip(free, degrees, strict=True)))


def legal_meshes(
    spec: ModelSpec,
    workload: Workload,
    gpus: int,
    backend: Backend,
    *,
    pins: Mapping[str, int] | None = None,
    exactly: bool = False,
    approximate: bool = False,
) -> tuple[tuple[Mesh, ...], dict[str, int]]:
    """Legal meshes of at most (or exactly) so many GPUs, small ones first, and the others
    counted by reason.
    """
    legal: list[Mesh] = []
    dropped: Counter[str] = Counter()
    axes = backend.axes if approximate else backend.exact_axes
    one_picture = {"dp": 1} if workload.batch == 1 else {}
    for mesh in degrees_within(gpus, axes, one_picture | dict(pins or {})):
        if exactly and mesh.size != gpus:
            continue
        if found := violation(mesh, spec, workload, backend, approximate=approximate):
            dropped[found.reason] += 1
        else:
            legal.append(mesh)
    legal.sort(key=lambda mesh: (mesh.size, mesh.degrees))
    return tuple(legal), dict(dropped)


def placement_of(mesh: Mesh, order: Sequence[str] = AXES) -> tuple[int, ...]:
    """Ranks by mesh coordinate when the last axis of `order` has neighbouring ranks, the one
    before the next, ...
    """
    strides, stride = {}, 1
    for axis in reversed(order):
        strides[axis] = stride
        stride *= getattr(mesh, axis)
    steps = [strides[axis] for axis in AXES]
    return tuple(
        sum(step * index for step, index in zip(steps, coordinate, strict=True))
        for coordinate in mesh.coordinates()
    )


def axis_orders(mesh: Mesh) -> Iterator[tuple[str, ...]]:
    """The orders of a mesh's split axes, the usual one first.

    Axes of degree 1 stay where they are.
    """
    places = [i for i, degree in enumerate(mesh.degrees) if degree > 1]
    for permutation in itertools.permutations(places):
        order = list(AXES)
        for place, source in zip(places, permutation, strict=True):
            order[place] = AXES[source]
        yield tuple(order)


def placements(mesh: Mesh, topology: Topology) -> list[tuple[tuple[str, ...], tuple[int, ...]]]:
    """Orders of the axes with their placements, without those that this topology can't tell
    apart.
    """
    found: dict[tuple[object, ...], tuple[tuple[str, ...], tuple[int, ...]]] = {}
    for order in axis_orders(mesh):
        placement = placement_of(mesh, order)
        found.setdefault(_seen_by(topology, mesh, placement), (order, placement))
    return list(found.values())


def enumerate_space(
    spec: ModelSpec,
    workload: Workload,
    topology: Topology,
    gpus: int,
    backend: Backend,
    *,
    pins: Mapping[str, int] | None = None,
    modes: Sequence[Mode] = ("eager",),
    exactly: bool = False,
    allowed: Allowed | None = None,
) -> Space:
    """All legal meshes x settings of PipeFusion x placements that differ x modes.

    Without `allowed` exact plans only.
    """
    meshes, dropped = legal_meshes(
        spec,
        workload,
        gpus,
        backend,
        pins=pins,
        exactly=exactly,
        approximate=allowed is not None,
    )
    candidates: list[Candidate] = []
    for mesh in meshes:
        parts = _pipefusion_parts(mesh, spec, workload, allowed)
        if isinstance(parts, Violation):
            dropped[parts.reason] = dropped.get(parts.reason, 0) + 1
            continue
        candidates += (
            Candidate(mesh, placement, mode, order, part)
            for order, placement in placements(mesh, topology)
            for part in parts
            for mode in modes
        )
    return Space(tuple(candidates), dropped)


def evenly_staged(
    mesh: Mesh, spec: ModelSpec, patches: int, warmup_steps: int
) -> PipeFusion | None:
    """A mesh's PipeFusion part with about as many blocks in each stage, if it has stages."""
    if mesh.pipefusion == 1:
        return None
    stages = split_sizes(spec.block_count, mesh.pipefusion)
    return PipeFusion(blocks_per_stage=stages, patches=patches, warmup_steps=warmup_steps)


def rule_of_thumb(
    candidates: Sequence[Candidate], spec: ModelSpec, workload: Workload, topology: Topology
) -> Candidate:
    """What users choose by hand, among the candidates: the control that a search must beat.

    As xDiT's and SGLang's guides advise: all GPUs, cfg 2 first when there is guidance, then ulysses
    as far as heads divide and the host reaches, ring over the rest, ranks in the usual order,
    eager.
    """
    host = topology.ranks_per_host

    def advised(candidate: Candidate) -> tuple[int, ...]:
        mesh = candidate.mesh
        usual_ulysses = (
            mesh.ulysses if spec.heads % mesh.ulysses == 0 and mesh.ulysses <= host else 0
        )
        return (
            mesh.size,
            mesh.cfg == min(2, workload.passes),
            mesh.pipefusion == 1,
            usual_ulysses,
            candidate.order == AXES,
            candidate.mode == "eager",
        )

    return max(candidates, key=advised)


def _products_within(room: int, axes: int) -> Iterator[tuple[int, ...]]:
    if axes == 0:
        if room >= 1:
            yield ()
        return
    for degree in range(1, room + 1):
        for rest in _products_within(room // degree, axes - 1):
            yield (degree, *rest)


def _pipefusion_parts(
    mesh: Mesh, spec: ModelSpec, workload: Workload, allowed: Allowed | None
) -> list[PipeFusion | None] | Violation:
    """The settings of PipeFusion to try on a mesh, or why there are none."""
    if mesh.pipefusion == 1 or allowed is None:
        return [None]
    parts: list[PipeFusion | None] = []
    why = Violation(
        "no PipeFusion keeps the bound",
        f"no setting of PipeFusion that was measured on {spec.name} keeps --quality "
        f"{allowed.bound}; leave pipefusion at 1, or allow more",
    )
    for patches, warmup_steps in allowed.settings(mesh.pipefusion):
        found = patching_violation(mesh, spec, workload, patches, warmup_steps)
        if found:
            why = found
        else:
            parts.append(evenly_staged(mesh, spec, patches, warmup_steps))
    return parts or why


def why_no_setting(
    mesh: Mesh, spec: ModelSpec, workload: Workload, allowed: Allowed | None
) -> str | None:
    """Why no allowed setting of PipeFusion can run on a legal mesh; None if one can."""
    found = _pipefusion_parts(mesh, spec, workload, allowed)
    return found.sentence if isinstance(found, Violation) else None


def _has_passes_to_split(spec: ModelSpec) -> bool:
    """Whether guidance, when it is on, makes more than one pass a step."""
    return family_of(spec.transformer_class).guidance != "embedded"


def _seen_by(topology: Topology, mesh: Mesh, placement: tuple[int, ...]) -> tuple[object, ...]:
    """What the topology sees of a placement: each axis' speed, and which device holds which
    coordinate.
    """
    names = tuple(topology.device_names[rank] for rank in placement)
    devices = names if len(set(names)) > 1 else ()
    split = [axis for axis, degree in zip(AXES, mesh.degrees, strict=True) if degree > 1]
    speeds = (topology.signature(tuple(mesh.groups(placement, (axis,)))) for axis in split)
    return (devices, *speeds)


def _example(spec: ModelSpec, workload: Workload, gpus: int, backend: Backend) -> str:
    """Such as `, such as --cfg 2 --ulysses 4`, when there is a legal mesh of so many GPUs."""
    legal, _ = legal_meshes(spec, workload, gpus, backend, exactly=True)
    if gpus == 1 or not legal:
        return ""
    best = max(legal, key=lambda mesh: (mesh.cfg == min(2, workload.passes), mesh.ulysses))
    flags = (f"--{axis} {d}" for axis, d in zip(AXES, best.degrees, strict=True) if d > 1)
    return f", such as {' '.join(flags)}"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
