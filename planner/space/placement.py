"""Which rank gets which coordinate of a mesh, as far as a topology can tell placements apart."""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from ditplan.planner.network.groups import Groups, groups_along
from ditplan.planner.network.tables import Group
from ditplan.planner.network.topology import Topology
from ditplan.profiles.cluster import Operation
from ditplan.profiles.mesh import AXES, Mesh, axis_orders, placement_of

MOST_SEATINGS = 70
"""So many ways to seat kinds of device are all tried: as many as for four of each of two kinds.
Where there are more, those of one kind sit side by side."""

MOST_SORTED_KINDS = 3
"""Then so many kinds stand in all orders, more of them as they are listed and the other way round:
clusters list them by age or speed."""

ONWARD: tuple[Operation, ...] = ("send_recv",)
BOTH_WAYS: tuple[Operation, ...] = ("all_to_all", "send_recv")
TOGETHER = (("ring", "ulysses"), ("dp", "cfg"), ("dp", "cfg", "ring", "ulysses"))
"""Axes over which outputs are put together, and over which weights are shared out."""


def placements(
    mesh: Mesh, topology: Topology, orders: Sequence[tuple[str, ...]] = ()
) -> list[tuple[tuple[str, ...], tuple[int, ...]]]:
    """Orders of the axes (all if none are given) with their placements, without those that this
    topology can't tell apart.

    Where devices differ they are seated in all ways: fast ones first or last, or in turns.
    """
    found: dict[tuple[object, ...], tuple[tuple[str, ...], tuple[int, ...]]] = {}
    names = topology.device_names[: mesh.size] if topology.has_different_devices else ()
    for seats in seatings(names) if len(set(names)) > 1 else (None,):
        for order in orders or axis_orders(mesh):
            placement = placement_of(mesh, order)
            if seats is not None:
                placement = tuple(seats[seat] for seat in placement)
            found.setdefault(_seen_by(topology, mesh, order, placement), (order, placement))
    return list(found.values())


def placements_on(
    mesh: Mesh,
    topology: Topology,
    orders: Sequence[tuple[str, ...]],
    subsets: Iterable[tuple[int, ...]],
) -> list[tuple[tuple[str, ...], tuple[int, ...]]]:
    """Orders of the axes with their placements on subsets of the ranks, of those that aren't slower
    than another one, on the first ranks or on a subset, along every axis.
    """
    first = [_speeds_of(topology, mesh, partial(groups_along, mesh, order)) for order in orders]
    found: dict[tuple[float, ...], tuple[tuple[str, ...], tuple[int, ...]]] = {}
    for subset, order in itertools.product(subsets, orders):
        placement = tuple(subset[seat] for seat in placement_of(mesh, order))
        speeds = _speeds_of(topology, mesh, partial(mesh.groups, placement))
        if any(_is_as_fast(other, speeds) for other in itertools.chain(first, found)):
            continue
        found = {one: kept for one, kept in found.items() if not _is_as_fast(speeds, one)}
        found[speeds] = order, placement
    return list(found.values())


def _is_as_fast(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(mine <= theirs for mine, theirs in zip(one, other, strict=True))


def _speeds_of(
    topology: Topology, mesh: Mesh, groups_of: Callable[[tuple[str, ...]], Groups | list[Group]]
) -> tuple[float, ...]:
    """How long exchanges take along each axis, and along those that exchange together: between all
    pairs where it may be so, else from each rank to the next.
    """
    split = {axis for axis, degree in zip(AXES, mesh.degrees, strict=True) if degree > 1}
    along = [(axis,) for axis in AXES if axis in split]
    may_push = "nvlink" in topology.cluster.link_kinds
    speeds: list[float] = []
    for axes in [*along, *(axes for axes in TOGETHER if len(split.intersection(axes)) > 1)]:
        is_pairwise = may_push or axes == ("ulysses",)
        operations = BOTH_WAYS if is_pairwise else ONWARD
        speeds += topology.signature(groups_of(axes), operations)
    return tuple(speeds)


def seatings(names: Sequence[str]) -> Iterator[tuple[int, ...]]:
    """The rank on each seat, for all ways to seat ranks whose devices have such names, as they are
    first. Which of the ranks of one name sits where makes no difference.

    >>> list(seatings(("fast", "slow", "slow")))
    [(0, 1, 2), (1, 0, 2), (1, 2, 0)]
    """
    yield tuple(range(len(names)))
    counts = Counter(names)
    if len(counts) == 1:
        return
    ways = math.factorial(len(names)) // math.prod(map(math.factorial, counts.values()))
    seated = _arrangements(counts)
    if ways > MOST_SEATINGS:
        kinds: Iterable[tuple[str, ...]] = itertools.permutations(counts)
        if len(counts) > MOST_SORTED_KINDS:
            listed = tuple(counts)
            kinds = (listed, listed[::-1])
        seated = (
            tuple(Counter({kind: counts[kind] for kind in each}).elements()) for each in kinds
        )
    for sequence in seated:
        if sequence != tuple(names):
            ranks = {
                kind: iter([rank for rank, name in enumerate(names) if name == kind])
                for kind in counts
            }
            yield tuple(next(ranks[name]) for name in sequence)


def _arrangements(counts: Counter[str]) -> Iterator[tuple[str, ...]]:
    """All sequences with so many of each name."""
    if not counts.total():
        yield ()
    for name in [name for name, count in counts.items() if count]:
        for rest in _arrangements(counts - Counter([name])):
            yield (name, *rest)


def _seen_by(
    topology: Topology, mesh: Mesh, order: tuple[str, ...], placement: tuple[int, ...]
) -> tuple[object, ...]:
    """What the topology sees of a placement: each axis' speed, and which device holds which
    coordinate.
    """
    devices: tuple[object, ...] = ()
    if topology.has_different_devices:
        names = [topology.device_names[rank] for rank in placement]
        devices = _seated(mesh, names) if len(set(names)) > 1 else ()
    in_order = not devices or placement == placement_of(mesh, order)
    split = [axis for axis, degree in zip(AXES, mesh.degrees, strict=True) if degree > 1]
    speeds = (
        topology.signature(
            groups_along(mesh, order, (axis,)) if in_order else mesh.groups(placement, (axis,))
        )
        for axis in split
    )
    return (devices, *speeds)


def _seated(mesh: Mesh, names: Sequence[str]) -> tuple[object, ...]:
    """Which device holds which coordinate: the same for placements in which ranks of an axis other
    than pipefusion only change places.
    """
    batch, stages, ring, ulysses = mesh.batch_parallel, mesh.pipefusion, mesh.ring, mesh.ulysses
    table = dict(
        zip(itertools.product(*map(range, (batch, stages, ring, ulysses))), names, strict=True)
    )

    def along(sizes: Sequence[int]) -> list[tuple[int, ...]]:
        return list(itertools.product(*map(range, sizes)))

    columns = sorted(
        tuple(table[b, s, r, u] for b, s, r in along((batch, stages, ring))) for u in range(ulysses)
    )
    rows = sorted(
        tuple(column[at * ring + r] for at in range(batch * stages) for column in columns)
        for r in range(ring)
    )
    width = ulysses * stages
    return tuple(
        sorted(tuple(row[b * width : (b + 1) * width] for row in rows) for b in range(batch))
    )
