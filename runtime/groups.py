"""What a rank knows of itself and of its process groups: objects that are passed on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ditplan.profiles.mesh import Mesh

# Longer than a compile, during which the other ranks wait in a collective; the pool ends tasks that
# take too long.
GROUP_TIMEOUT = timedelta(minutes=15)

TRANSPORT_CTAS = 2
"""Thread blocks of NCCL for transfers that run beside computing; each takes a multiprocessor."""


@dataclass(frozen=True)
class AxisGroup:
    """The ranks that differ only along some mesh axes, as one of them sees it.

    `ranks` are global ranks in the order of their mesh coordinates, and `index` is this rank's
    place among them: go by these. torch numbers the members of a process group by ascending global
    rank, whatever order it is given, so under a placement that isn't ascending a collective's i-th
    chunk belongs to `ranks[order[i]]`.
    """

    ranks: tuple[int, ...]
    group: dist.ProcessGroup
    index: int

    @property
    def size(self) -> int:
        """How many ranks the group has."""
        return len(self.ranks)

    @property
    def order(self) -> tuple[int, ...]:
        """For each rank of the process group, ascending, its index here."""
        return tuple(sorted(range(self.size), key=self.ranks.__getitem__))

    @property
    def is_in_order(self) -> bool:
        """Whether the process group numbers its ranks as `ranks` does."""
        return self.order == tuple(range(self.size))


@dataclass
class GroupCache:
    """The process groups of one rank, made when first needed and kept: plan after plan reuses them.

    Making a group is collective over the whole world: every rank must ask for the same groups in
    the same order.
    """

    rank: int
    world_size: int
    _groups: dict[tuple[str, tuple[int, ...]], dist.ProcessGroup | None] = field(
        default_factory=dict
    )

    def axis_group(
        self, mesh: Mesh, placement: tuple[int, ...], axes: Sequence[str], purpose: str = ""
    ) -> AxisGroup | None:
        """This rank's group along `axes`; None when it is alone there or not in the mesh. With a
        `purpose` it is one of its own, as `group` makes them.

        Every rank of the world calls this, also those that the mesh doesn't use.

        Raises:
            ValueError: an unknown axis, or a placement that doesn't fit mesh or world.
        """
        if outside := [rank for rank in placement if rank >= self.world_size]:
            raise ValueError(
                f"the placement names rank {outside[0]}, there are {self.world_size} ranks"
            )
        mine = None
        for ranks in mesh.groups(placement, tuple(axes)):
            if len(ranks) == 1:
                continue
            group = self.group(ranks, purpose)
            if group is not None:
                mine = AxisGroup(ranks, group, ranks.index(self.rank))
        return mine

    def group(self, ranks: Sequence[int], purpose: str = "") -> dist.ProcessGroup | None:
        """The process group of some global ranks, ascending; None on all other ranks.

        With a `purpose` it is one of its own, whose transfers wait for no others and, on GPUs,
        leave the multiprocessors to what computes meanwhile.
        """
        members = tuple(sorted(ranks))
        if not purpose and members == tuple(range(self.world_size)):
            return dist.group.WORLD
        key = (purpose, members)
        if key not in self._groups:
            options = _transport_options() if purpose else None
            made = dist.new_group(list(members), timeout=GROUP_TIMEOUT, pg_options=options)
            self._groups[key] = made if self.rank in members else None
        return self._groups[key]

    def close(self) -> None:
        """Destroys the groups made here; the world's own stays. Collective, like making them."""
        for group in self._groups.values():
            if group is not None:
                dist.destroy_process_group(group)
        self._groups.clear()


def _transport_options() -> Any:
    """Of a group whose transfers run beside computing; None where the backend has none.

    A kernel of NCCL holds its multiprocessors for as long as it waits for the other end.
    """
    if dist.get_backend() != "nccl":
        return None
    options = dist.ProcessGroupNCCL.Options(is_high_priority_stream=True)
    options.config.max_ctas = TRANSPORT_CTAS
    return options


@dataclass(frozen=True)
class RankContext:
    """What a task gets: which rank this is, the device that is its own, and the process groups.

    `kept` holds what tasks leave for later tasks in the same process, such as a loaded pipeline.
    """

    rank: int
    world_size: int
    device: torch.device
    groups: GroupCache
    kept: dict[str, Any] = field(default_factory=dict)


Work = Callable[[], object]
"""What a rank computes while its tensors travel."""
