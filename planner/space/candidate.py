"""A configuration as the search sees it, what to try on a mesh, and all of them together."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from ditplan.planner.network.groups import Groups, groups_along, wanted
from ditplan.planner.network.topology import Topology
from ditplan.planner.space.placement import placement_of, placements
from ditplan.profiles.mesh import AXES, Mesh
from ditplan.profiles.model import Mode
from ditplan.profiles.plan import PipeFusion, TaylorSeer, Weights


@dataclass(frozen=True)
class Candidate:
    """A mesh on certain ranks in an execution mode.

    `order` lists the axes from the one whose neighbours are farthest apart in rank to the one whose
    are next to each other; `placement` is what follows from it, the rank of each mesh coordinate.
    A mesh with pipefusion stages has a `pipefusion` part. `token_shares`, `weights` and
    `step_cache` are those of a plan.
    """

    mesh: Mesh
    placement: tuple[int, ...]
    mode: Mode = "eager"
    order: tuple[str, ...] = AXES
    pipefusion: PipeFusion | None = None
    token_shares: tuple[int, ...] | None = None
    weights: Weights = "replicated"
    step_cache: TaylorSeer | None = None

    def __str__(self) -> str:
        """Such as `cfg2 x ulysses4, eager`, with the order of the axes where it isn't the usual
        one, PipeFusion's settings, unequal shares of the tokens, weights that are shared out and a
        step cache.
        """
        placed = "" if self.order == AXES else f", {self.order_text}"
        patched = f", {self.pipefusion}" if self.pipefusion else ""
        shared = f", {self.shares_text}" if self.token_shares else ""
        cached = f", {self.step_cache}" if self.step_cache else ""
        pieces = ", sharded weights" if self.weights == "sharded" else ""
        return f"{self.mesh}, {self.mode}{placed}{patched}{shared}{pieces}{cached}"

    @cached_property
    def follows_order(self) -> bool:
        """Whether the placement is what follows from the order."""
        return self.placement == placement_of(self.mesh, self.order)

    def groups(self, axes: tuple[str, ...]) -> Groups:
        """Its groups of ranks along axes."""
        if self.follows_order:
            return groups_along(self.mesh, self.order, axes)
        return wanted(self.mesh.groups(self.placement, axes))

    @property
    def weight_group_size(self) -> int:
        """How many ranks share out the weights of a block that they all run."""
        return self.mesh.size // self.mesh.pipefusion if self.weights == "sharded" else 1

    @property
    def can_share_weights(self) -> bool:
        """Whether several ranks run the same blocks, and can gather them: not within graphs."""
        return self.mesh.size > self.mesh.pipefusion and "graph" not in self.mode

    @property
    def shares_text(self) -> str:
        """Such as `tokens 2:1`, by place in the sequence; empty for equal shares."""
        return f"tokens {':'.join(map(str, self.token_shares))}" if self.token_shares else ""

    @property
    def order_text(self) -> str:
        """The axes that are split, far neighbours first, such as `ulysses > cfg`."""
        return " > ".join(axis for axis in self.order if getattr(self.mesh, axis) > 1)


Setting = tuple[PipeFusion | None, Mode]


@dataclass(frozen=True)
class Choice:
    """A legal mesh, and what to try on it: settings of PipeFusion (None where it has no stages) in
    execution modes, and orders of its axes.

    Stages have about the same number of blocks, whatever these take.
    """

    mesh: Mesh
    settings: tuple[Setting, ...]
    orders: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Space:
    """Legal meshes, small ones first, and how many were dropped for each reason."""

    choices: tuple[Choice, ...]
    topology: Topology
    dropped: dict[str, int]

    def placed(self, choice: Choice) -> Iterator[Candidate]:
        """A mesh with all its settings and placements that differ."""
        for order, placement in placements(choice.mesh, self.topology, choice.orders):
            for part, mode in choice.settings:
                yield Candidate(choice.mesh, placement, mode, order, part)

    @cached_property
    def candidates(self) -> tuple[Candidate, ...]:
        """All of them."""
        return tuple(itertools.chain(*map(self.placed, self.choices)))
