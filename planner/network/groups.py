"""The groups of ranks that talk along axes of a mesh, kept as strides: cheap to compare and to look
up, however many ranks there are.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ditplan.planner.memo import KeyTuple
from ditplan.planner.network.tables import Group, common_stride
from ditplan.profiles.mesh import AXES, Mesh, strides_of


@dataclass(frozen=True)
class AxisGroups:
    """Groups that are one pattern, moved, and share out the ranks from 0 to `ranks` - 1.

    `runs` are degree and stride of the pattern's coordinates, of which the last one changes first;
    none where each rank is alone.
    """

    runs: tuple[tuple[int, int], ...]
    ranks: int

    @property
    def size(self) -> int:
        """Ranks of a group."""
        return math.prod(degree for degree, _ in self.runs)

    @property
    def count(self) -> int:
        """How many groups there are."""
        return self.ranks // self.size

    @cached_property
    def first(self) -> Group:
        """The group of rank 0."""
        steps = (range(0, degree * stride, stride) for degree, stride in self.runs)
        return tuple(map(sum, itertools.product(*steps)))

    @cached_property
    def listed(self) -> tuple[Group, ...]:
        """All groups, member by member."""
        gaps, covered = [], 1
        for degree, stride in sorted(self.runs, key=lambda run: run[1]):
            gaps.append(range(0, stride, covered))
            covered = degree * stride
        gaps.append(range(0, self.ranks, covered))
        starts = sorted(map(sum, itertools.product(*gaps)))
        return tuple(tuple(start + member for member in self.first) for start in starts)


Groups = KeyTuple[Group] | AxisGroups


NOBODY: Groups = KeyTuple()


def groups_along(mesh: Mesh, order: Sequence[str], axes: Sequence[str]) -> AxisGroups:
    """The groups along axes of a mesh whose axes lie on the ranks in an order, the last one on
    neighbours.
    """
    strides = strides_of(mesh, order)
    runs: list[tuple[int, int]] = []
    for axis in AXES:
        degree = getattr(mesh, axis)
        if axis not in axes or degree == 1:
            continue
        if runs and runs[-1][1] == degree * strides[axis]:
            degree *= runs.pop()[0]
        runs.append((degree, strides[axis]))
    return AxisGroups(tuple(runs), mesh.size)


def wanted(groups: Sequence[Group] | AxisGroups) -> Groups:
    """The groups in which somebody talks to somebody, if there are any. What was sorted out so
    before stays as it is.
    """
    if isinstance(groups, AxisGroups):
        return groups if groups.runs else NOBODY
    if isinstance(groups, KeyTuple):
        return groups
    return KeyTuple(tuple(group) for group in groups if len(group) > 1)


def listed(groups: Groups) -> tuple[Group, ...]:
    """All groups, member by member."""
    return groups.listed if isinstance(groups, AxisGroups) else groups


def first_of(groups: Groups) -> Group:
    """One of them."""
    return groups.first if isinstance(groups, AxisGroups) else groups[0]


def count_of(groups: Groups) -> int:
    """How many there are."""
    return groups.count if isinstance(groups, AxisGroups) else len(groups)


def stride_in(groups: Groups) -> int | None:
    """The stride of all the groups, if they have the same one."""
    return common_stride((groups.first,) if isinstance(groups, AxisGroups) else groups)
