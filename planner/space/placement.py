"""Which rank gets which coordinate of a mesh, as far as a topology can tell placements apart."""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from ditplan.planner.network.groups import groups_along
from ditplan.planner.network.topology import Topology
from ditplan.profiles.mesh import AXES, Mesh, axis_orders, placement_of

MOST_SEATINGS = 70
"""So many ways to seat kinds of device are all tried: as many as for four of each of two kinds.
Where there are more, those of one kind sit side by side."""

MOST_SORTED_KINDS = 3
"""Then so many kinds stand in all orders, more of them as they are listed and the other way round:
clusters list them by age or speed."""


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
