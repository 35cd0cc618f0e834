"""The mesh: degrees of parallelism, mesh coordinates, and which ranks talk along which axes."""

import itertools
import math
from collections.abc import Sequence
from functools import cache

from ditplan.profiles.bounds import Degree
from ditplan.profiles.record import FrozenModel

AXES = ("dp", "cfg", "pipefusion", "ring", "ulysses")


class Mesh(FrozenModel):
    """Degrees of parallelism; one rank for each coordinate (dp, cfg, pipefusion, ring, ulysses)."""

    dp: Degree = 1
    cfg: Degree = 1
    pipefusion: Degree = 1
    ring: Degree = 1
    ulysses: Degree = 1

    @property
    def degrees(self) -> tuple[int, ...]:
        """The degrees in the order of `AXES`."""
        return (self.dp, self.cfg, self.pipefusion, self.ring, self.ulysses)

    @property
    def size(self) -> int:
        """How many ranks the mesh needs."""
        return math.prod(self.degrees)

    @property
    def batch_parallel(self) -> int:
        """Over how many ranks the samples of one call are split: pictures times passes."""
        return self.dp * self.cfg

    @property
    def sequence_parallel(self) -> int:
        """Over how many ranks the tokens of one sequence are split."""
        return self.ring * self.ulysses

    def __str__(self) -> str:
        """Such as `cfg2 x ulysses4`, or `one device`."""
        return (
            " x ".join(f"{a}{d}" for a, d in zip(AXES, self.degrees, strict=True) if d > 1)
            or "one device"
        )

    def coordinates(self) -> list[tuple[int, ...]]:
        """All coordinates, last axis fastest: the order in which a placement lists ranks."""
        return list(itertools.product(*(range(d) for d in self.degrees)))

    def groups(self, placement: tuple[int, ...], axes: tuple[str, ...]) -> list[tuple[int, ...]]:
        """The groups of ranks that differ only in their coordinates along `axes`.

        A group's members stand in the order of those coordinates, last of `AXES` fastest; each rank
        is in one group.

        Raises:
            ValueError: an unknown axis, or a placement that doesn't name `size` different ranks.
        """
        if unknown := set(axes) - set(AXES):
            raise ValueError(f"unknown mesh axes {sorted(unknown)}; there are {', '.join(AXES)}")
        if len(placement) != self.size or len(set(placement)) != self.size:
            raise ValueError(
                f"a placement of {self} names {self.size} different ranks, this one is {placement}"
            )
        fixed = [i for i, axis in enumerate(AXES) if axis not in axes]
        members: dict[tuple[int, ...], list[int]] = {}
        for coordinate, rank in zip(self.coordinates(), placement, strict=True):
            members.setdefault(tuple(coordinate[i] for i in fixed), []).append(rank)
        return [tuple(group) for group in members.values()]


def strides_of(mesh: Mesh, order: Sequence[str]) -> dict[str, int]:
    """How far apart in rank neighbours along each axis are."""
    strides, stride = {}, 1
    for axis in reversed(order):
        strides[axis] = stride
        stride *= getattr(mesh, axis)
    return strides


def placement_of(mesh: Mesh, order: Sequence[str] = AXES) -> tuple[int, ...]:
    """Ranks by mesh coordinate when the last axis of `order` has neighbouring ranks, the one
    before the next, ...
    """
    strides, ranks = strides_of(mesh, order), [0]
    for axis, degree in zip(AXES, mesh.degrees, strict=True):
        stride = strides[axis]
        ranks = [rank + stride * index for rank in ranks for index in range(degree)]
    return tuple(ranks)


def axis_orders(mesh: Mesh) -> tuple[tuple[str, ...], ...]:
    """The orders of a mesh's split axes, the usual one first.

    Axes of degree 1 stay where they are.
    """
    return _orders_of(tuple(i for i, degree in enumerate(mesh.degrees) if degree > 1))


@cache
def _orders_of(places: tuple[int, ...]) -> tuple[tuple[str, ...], ...]:
    orders = []
    for permutation in itertools.permutations(places):
        order = list(AXES)
        for place, source in zip(places, permutation, strict=True):
            order[place] = AXES[source]
        orders.append(tuple(order))
    return tuple(orders)
