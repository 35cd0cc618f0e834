"""What to try on a mesh, all of it together, and who talks to whom in a configuration."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from ditplan.planner.network.groups import Groups, groups_along, wanted
from ditplan.planner.network.topology import Topology
from ditplan.planner.space.placement import placements
from ditplan.profiles.configuration import Configuration, PipeFusion
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import Mode


def groups_of(configuration: Configuration, axes: tuple[str, ...]) -> Groups:
    """A configuration's groups of ranks along axes."""
    if configuration.follows_order:
        return groups_along(configuration.mesh, configuration.order, axes)
    return wanted(configuration.mesh.groups(configuration.placement, axes))


Setting = tuple[PipeFusion | None, Mode]
Settings = tuple[Setting, ...]


@dataclass(frozen=True)
class Choice:
    """A legal mesh, and what to try on it: settings of PipeFusion (None where it has no stages) in
    execution modes, and orders of its axes.

    Stages have about the same number of blocks, whatever these take.
    """

    mesh: Mesh
    settings: Settings
    orders: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Space:
    """Legal meshes, small ones first, and how many were dropped for each reason."""

    choices: tuple[Choice, ...]
    topology: Topology
    dropped: dict[str, int]

    def placed(self, choice: Choice) -> Iterator[Configuration]:
        """A mesh with all its settings and placements that differ."""
        for order, placement in placements(choice.mesh, self.topology, choice.orders):
            for part, mode in choice.settings:
                yield Configuration(choice.mesh, placement, mode, order, part)

    @cached_property
    def candidates(self) -> tuple[Configuration, ...]:
        """All of them."""
        return tuple(itertools.chain(*map(self.placed, self.choices)))
