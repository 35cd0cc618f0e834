"""Which measurements the planner wants of a model before it prices plans."""

from collections.abc import Iterable, Sequence

from ditplan.planner.cost.share import samples_of
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import Mode, ModelSpec, PointRequest
from ditplan.profiles.workload import Workload


def wanted_points(
    spec: ModelSpec,
    workload: Workload,
    meshes: Iterable[Mesh],
    modes: Sequence[Mode],
    patched: Iterable[tuple[Mesh, int]] = (),
) -> tuple[PointRequest, ...]:
    """The points that these meshes need for this workload in these modes, and those that are
    `patched` for so many patches.

    And smaller ones, eager, for devices too slow to measure them.

    A rank's blocks see its share of samples and tokens, and attention all tokens (ulysses, or the
    sum of a ring's rounds) as well as the rank's own (one round of a ring). A patch is nearly what
    a rank would have of a sequence split over so many times more ranks: it attends to all tokens.
    """
    samples = workload.batch * workload.passes
    shapes = {
        (samples_of(mesh, spec, workload), mesh.sequence_parallel)
        for mesh in meshes
        if mesh.batch_parallel <= samples
    }
    requests = {
        _request(spec, workload, batch, ranks, key_ranks, 1, modes)
        for batch, ranks in shapes
        for key_ranks in {1, ranks}
    }
    parts = {
        (samples_of(mesh, spec, workload), mesh.sequence_parallel * patches)
        for mesh, patches in patched
        if mesh.batch_parallel <= samples
    }
    cut = {_request(spec, workload, batch, n, n, 1, modes) for batch, n in parts}
    requests |= set(filter(_can_be_split, cut))
    sizes = {request.image_tokens for request in requests}
    smaller = {_request(spec, workload, 1, 1, 1, shrink) for shrink in (2, 4, 8)}
    smaller = {request for request in smaller if request.image_tokens not in sizes}
    return tuple(sorted(requests | smaller, key=_cost))


def grid_points(
    spec: ModelSpec, workload: Workload, modes: Sequence[Mode]
) -> tuple[PointRequest, ...]:
    """A grid for any later workload, in these modes.

    x2 in tokens, batch 1 and 2, attention over 1, 2, 4 and 8 times the own tokens.
    """
    requests = {
        _request(spec, workload, batch, ranks, key_ranks, shrink, modes)
        for batch in (1, 2)
        for shrink in (1, 2, 4, 8)
        for ranks in (1, 2, 4, 8)
        for key_ranks in {1, ranks}
    }
    return tuple(sorted(filter(_can_be_split, requests), key=_cost))


def _request(
    spec: ModelSpec,
    workload: Workload,
    batch: int,
    ranks: int,
    key_ranks: int,
    shrink: int,
    modes: Sequence[Mode] = ("eager",),
) -> PointRequest:
    if spec.is_linear:
        # a rank's share of whole rows is as much work as a lower picture
        shrink, ranks, key_ranks = shrink * ranks, 1, 1
    edge = spec.pixels_per_token
    height = max(edge, workload.height // shrink // edge * edge)
    smaller = workload.model_copy(update={"height": height})
    return PointRequest(
        batch=batch,
        height=height,
        width=workload.width,
        image_tokens=spec.image_tokens(smaller),
        frames=workload.frames,
        text_tokens=spec.text_tokens(workload),
        side_tokens=workload.text_tokens - spec.text_tokens(workload),
        ranks=ranks,
        key_ranks=key_ranks,
        modes=tuple(modes),
    )


def _can_be_split(request: PointRequest) -> bool:
    return all(not n or n >= request.ranks for n in (request.image_tokens, request.text_tokens))


def _cost(request: PointRequest) -> tuple[float, int]:
    rows = request.batch * (request.image_share + request.text_share)
    return rows * (4096 + request.key_tokens), request.key_tokens
