"""What a rank knows of itself and of its process groups: objects that are passed on.

A group's transfers can be broken off, so that no rank waits for one that has failed, and groups
that were are made anew. Gloo's own `abort` wakes nobody (torch 2.13): what ends its waits is a
connection that is shut. NCCL's `abort` ends its kernels. Nobody else uses these groups: the
world's own is never broken off, it is what new ones are agreed on by.
"""

import contextlib
import os
import socket
import stat
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from ditplan.profiles.mesh import Mesh

# Longer than a compile, during which the other ranks wait in a collective; the pool ends tasks that
# take too long.
GROUP_TIMEOUT = timedelta(minutes=15)

CONTROL = "control"
"""The purpose of groups by which hosts agree, whatever the device: gloo's, never broken off."""

TRANSPORT_CTAS = 2
"""Thread blocks of NCCL for transfers that run beside computing; each takes a multiprocessor."""


class Connection(NamedTuple):
    """A socket of this process by its descriptor, and the addresses of its two ends."""

    descriptor: int
    here: tuple[str, int]
    there: tuple[str, int]

    def cut(self) -> None:
        """Ends it for both ends, unless it is gone and its descriptor another's."""
        with _socket_of(self.descriptor) as found:
            if found is not None and _ends(found) == (self.here, self.there):
                with contextlib.suppress(OSError):
                    found.shutdown(socket.SHUT_RDWR)


def open_connections() -> set[Connection]:
    """Those of this process over TCP."""
    found = set()
    for name in os.listdir("/dev/fd"):
        with _socket_of(int(name)) as one:
            ends = _ends(one) if one is not None else None
            if ends is not None:
                found.add(Connection(int(name), *ends))
    return found


@contextlib.contextmanager
def _socket_of(descriptor: int) -> Iterator[socket.socket | None]:
    """The socket that a descriptor is of, by another descriptor; None if it is of none."""
    made = None
    with contextlib.suppress(OSError):
        if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            made = socket.socket(fileno=os.dup(descriptor))
    try:
        yield made
    finally:
        if made is not None:
            made.close()


def _ends(connection: socket.socket) -> tuple[tuple[str, int], tuple[str, int]] | None:
    if connection.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    try:
        here, there = connection.getsockname(), connection.getpeername()
    except OSError:
        return None
    return (here[0], here[1]), (there[0], there[1])


@dataclass(eq=False)
class GroupHandle:
    """A process group, in whose place another one of the same ranks comes after a failure."""

    process_group: dist.ProcessGroup
    connections: tuple[Connection, ...] = ()

    def break_off(self) -> None:
        """Ends its transfers, here and on the other ranks; it can't be used any more."""
        for connection in self.connections:
            connection.cut()
        if dist.get_backend(self.process_group) == "nccl":
            backend: Any = self.process_group._get_backend(torch.device("cuda"))
            backend.abort()


@dataclass(frozen=True)
class AxisGroup:
    """The ranks that differ only along some mesh axes, as one of them sees it.

    `ranks` are global ranks in the order of their mesh coordinates, and `index` is this rank's
    place among them: go by these. torch numbers the members of a process group by ascending global
    rank, whatever order it is given, so under a placement that isn't ascending a collective's i-th
    chunk belongs to `ranks[order[i]]`.
    """

    ranks: tuple[int, ...]
    handle: GroupHandle
    index: int

    @property
    def group(self) -> dist.ProcessGroup:
        """Its process group as of now."""
        return self.handle.process_group

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
    the same order. `renewals` counts how often they were made anew or closed: what was made of
    groups before can't be used any more.
    """

    rank: int
    world_size: int
    renewals: int = 0
    are_broken: bool = False
    """Whether transfers were broken off and the groups not made anew since."""
    _groups: dict[tuple[str, tuple[int, ...]], GroupHandle | None] = field(default_factory=dict)

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
            handle = self.handle(ranks, purpose)
            if handle is not None:
                mine = AxisGroup(ranks, handle, ranks.index(self.rank))
        return mine

    def handle(self, ranks: Sequence[int], purpose: str = "") -> GroupHandle | None:
        """The process group of some global ranks, ascending; None on all other ranks.

        With a `purpose` it is one of its own, whose transfers wait for no others and, on GPUs,
        leave the multiprocessors to what computes meanwhile.
        """
        key = (purpose, tuple(sorted(ranks)))
        if key not in self._groups:
            self._groups[key] = self._made(key)
        return self._groups[key]

    def group(self, ranks: Sequence[int], purpose: str = "") -> dist.ProcessGroup | None:
        """As `handle`, the group that it has now."""
        found = self.handle(ranks, purpose)
        return found.process_group if found is not None else None

    def break_off(self) -> None:
        """Ends the transfers of all groups made here, those of `CONTROL` apart; by any thread."""
        self.are_broken = True
        for (purpose, _), handle in list(self._groups.items()):
            if handle is not None and purpose != CONTROL:
                handle.break_off()

    def renew(self) -> None:
        """Makes the groups anew that `break_off` has ended. Collective, like making them."""
        for key, handle in self._groups.items():
            if key[0] == CONTROL:
                continue
            if handle is not None:
                dist.destroy_process_group(handle.process_group)
            made = self._made(key)
            if handle is not None and made is not None:
                handle.process_group, handle.connections = made.process_group, made.connections
        self.renewals += 1
        self.are_broken = False

    def close(self) -> None:
        """Destroys the groups made here; the world's own stays. Collective, like making them."""
        for handle in self._groups.values():
            if handle is not None:
                dist.destroy_process_group(handle.process_group)
        self._groups.clear()
        self.renewals += 1

    def _made(self, key: tuple[str, tuple[int, ...]]) -> GroupHandle | None:
        purpose, members = key
        before = open_connections()
        if purpose == CONTROL:
            group = dist.new_group(list(members), timeout=GROUP_TIMEOUT, backend="gloo")
        else:
            options = _transport_options() if purpose else None
            group = dist.new_group(list(members), timeout=GROUP_TIMEOUT, pg_options=options)
        if self.rank not in members:
            return None
        handle = GroupHandle(group)
        if dist.get_backend(group) == "gloo":
            handle.connections = _of_group(open_connections() - before, group)
        return handle


def _of_group(new: set[Connection], group: dist.ProcessGroup) -> tuple[Connection, ...]:
    """Those that lead to a rank of the group: other threads may have opened some meanwhile."""
    found: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(found, [(one.here, one.there) for one in new], group=group)
    ends = {tuple(ends) for of_rank in found for ends in of_rank}
    return tuple(one for one in new if (one.there, one.here) in ends)


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
    With `keeps_graphs` a plan's graphs stay while others are in force. `watch` is made around each
    call of a pipeline under a plan, and given what tells kinds of calls apart. `topology_file` is
    what NCCL wrote of this host when it joined the ranks.
    """

    rank: int
    world_size: int
    device: torch.device
    groups: GroupCache
    kept: dict[str, Any] = field(default_factory=dict)
    keeps_graphs: bool = False
    watch: Callable[[Hashable], AbstractContextManager[Any]] | None = None
    topology_file: Path | None = None


Work = Callable[[], object]
"""What a rank computes while its tensors travel."""
