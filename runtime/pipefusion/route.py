"""The way of a patch through the stages: by which links it comes to this rank's and leaves it.

With the linear schedule it goes from the first stage to the last, and its prediction back to the
first. With the folded one it goes to the last and back again, through the mirrors of the blocks
that it came by, so that it ends where it began.
"""

import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch.distributed as dist

from ditplan.profiles.configuration import PipeFusion
from ditplan.profiles.mesh import Mesh
from ditplan.runtime.groups import AxisGroup, GroupHandle, RankContext
from ditplan.runtime.ranks.devices import may_share_memory
from ditplan.runtime.ranks.environment import environment
from ditplan.runtime.transport.collective_link import CollectiveLink, P2PLink
from ditplan.runtime.transport.host_link import HostLink
from ditplan.runtime.transport.mailbox import can_write_to_peers
from ditplan.runtime.transport.peer_link import PeerLink

Transport = Literal["peer memory", "host memory", "collectives"]
"""How ranks send to each other."""


@dataclass(frozen=True)
class Visit:
    """A patch coming by this stage: the blocks it then goes through, and its links.

    Without `source` it begins there, without `target` it ends there with a prediction.
    """

    number: int
    blocks: range
    source: P2PLink | None
    target: P2PLink | None


@dataclass(frozen=True)
class StageRoute:
    """This rank's line of stages: all ranks of it, and the links to and from it by stages."""

    stages: AxisGroup
    links: Mapping[tuple[int, int], P2PLink]

    @property
    def stage(self) -> int:
        """Which stage this rank is."""
        return self.stages.index

    @property
    def is_first(self) -> bool:
        """Whether this rank owns latents."""
        return self.stage == 0

    def visits(self, part: PipeFusion) -> tuple[Visit, ...]:
        """What this stage does for each patch, in the order in which the patch comes by."""
        here, last = self.stage, self.stages.size - 1
        there, *back = part.visits(here)
        before, after = self.links.get((here - 1, here)), self.links.get((here, here + 1))
        if part.schedule == "linear" or here < last:
            found = [Visit(0, there, before, after)]
        else:
            found = [Visit(0, there, before, self.links[here, here - 1])]
        found += [
            Visit(1, blocks, self.links[here + 1, here], self.links.get((here, here - 1)))
            for blocks in back
        ]
        return tuple(found)

    def predicting_stage(self, part: PipeFusion) -> int:
        """The stage on which patches end with a prediction."""
        return 0 if part.schedule == "folded" else self.stages.size - 1

    def clear(self) -> None:
        """Gives the memory of what is sent back; all ranks of the line call it, between calls."""
        for link in self.links.values():
            link.clear()

    def drain(self) -> None:
        """Waits until all that was sent has gone."""
        for link in self.links.values():
            link.drain()


def make_route(
    context: RankContext, mesh: Mesh, placement: tuple[int, ...], part: PipeFusion
) -> StageRoute | None:
    """This rank's pipe; None outside of the mesh. Every rank of the world calls it.

    Each link has a process group of its own: NCCL carries out a group's transfers one after the
    other, and those to and from a stage don't wait for each other.
    """
    stages = context.groups.axis_group(mesh, placement, ("pipefusion",))
    links: dict[tuple[int, int], P2PLink] = {}
    pairs = _linked_stages(mesh.pipefusion, part.schedule == "folded")
    for line in mesh.groups(placement, ("pipefusion",)):
        for pair in pairs:
            source, target = (line[stage] for stage in pair)
            group = context.groups.group((source, target), f"to {target}")
            if group is not None:
                links[pair] = _open_link(context, group, source, target)
    return StageRoute(stages, links) if stages else None


def _linked_stages(stages: int, folded: bool) -> list[tuple[int, int]]:
    onward = [(stage, stage + 1) for stage in range(stages - 1)]
    if folded:
        return onward + [(after, before) for before, after in onward]
    return [*onward, (stages - 1, 0)]


def _open_link(context: RankContext, group: dist.ProcessGroup, source: int, target: int) -> P2PLink:
    """A link that is connected; both ends call it."""
    ends = tuple(sorted((source, target)))
    transport = transport_between(
        AxisGroup(ends, GroupHandle(group), ends.index(context.rank)), context
    )
    if transport == "peer memory":
        return PeerLink(group, source, target, context.device)
    if transport == "host memory":
        with suppress(OSError):
            return HostLink(group, source, target, context.device)
    link = CollectiveLink(group, source, target, context.device)
    link.connect(context.rank)
    return link


def transport_between(ends: AxisGroup, context: RankContext) -> Transport:
    """How two ranks send to each other; both ask.

    `NCCL_SHM_DISABLE` means that processes may not share memory of the host.
    """
    if context.device.type != "cuda":
        return "collectives"
    if can_write_to_peers(ends, context):
        return "peer memory"
    allowed = may_share_memory(environment())
    found: list[Any] = [None, None]
    dist.all_gather_object(found, (platform.node(), allowed), group=ends.group)
    return "host memory" if allowed and found[0] == found[1] else "collectives"
