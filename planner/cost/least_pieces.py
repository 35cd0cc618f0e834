"""What a part of the sequence takes at least on its way through a rank's blocks, wherever its ranks
are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ditplan.planner.cost.activities import Activity, RingAttention
from ditplan.planner.cost.rank_work import RankWork
from ditplan.planner.cost.roofline import Timed, overlapped_s
from ditplan.planner.cost.share import RankShard
from ditplan.planner.cost.step import Place, Step
from ditplan.planner.memo import Memo
from ditplan.planner.network.groups import AxisGroups, Groups, groups_along
from ditplan.planner.network.traffic import is_even
from ditplan.profiles.cluster import Device
from ditplan.profiles.configuration import Configuration, PipeFusion
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import BlockRun, Mode
from ditplan.profiles.workload import Workload

PlaceKey = tuple[tuple[tuple[str, ...], tuple[int, int]], ...]


@dataclass(frozen=True)
class Piece:
    """What a part of the sequence, or all of it, takes at least in any mode: all blocks with their
    exchanges, one block, what is in none; the host's seconds to launch it all, and to launch
    nothing but what is in no block; and how well host and device overlap.
    """

    blocks_s: float
    least_block_s: float
    outside_s: float
    host_s: float
    again_s: float
    exponent: float

    def through_s(self, stages: int, more_s: float = 0.0) -> float:
        """All stages one after the other: each does what is in no block anew, and is launched; and
        the device something more.
        """
        device_s = self.blocks_s + stages * self.outside_s + more_s
        # no more than the sum over stages, by Minkowski's inequality
        return overlapped_s(self.host_s + (stages - 1) * self.again_s, device_s, self.exponent)

    def stage_s(self, blocks: int) -> float:
        """A stage of so many blocks or more."""
        return max(blocks * self.least_block_s + self.outside_s, self.again_s)


class LeastPieces:
    """Finds pieces, each once."""

    def __init__(self, work: RankWork, workload: Workload) -> None:
        self._work, self._workload = work, workload
        self._places: Memo[PlaceKey, Place] = Memo()
        self._keys: Memo[tuple[tuple[int, ...], tuple[str, ...]], PlaceKey | None] = Memo()
        self._exchanged_s: Memo[tuple[object, ...], float] = Memo()
        self._pieces: Memo[tuple[object, ...], Piece] = Memo()

    def of(
        self,
        mesh: Mesh,
        order: tuple[str, ...],
        modes: tuple[Mode, ...],
        pipefusion: PipeFusion | None,
        device: Device,
        share: RankShard,
        *,
        is_slowed: bool,
    ) -> Piece:
        """What a share of a mesh's sequence takes at least in any of the modes; `is_slowed` says
        whether products run beside transfers that they mind.
        """
        # a share says itself whether it is a patch's, which is all that PipeFusion changes here
        place_key = self.place_key(mesh, order)
        key = (share, place_key, device.name, modes, is_slowed)
        if key not in self._pieces:
            nowhere = self._place_of(mesh, order) or Place(lambda axes: ())
            steps = []
            for mode in modes:
                tried = Configuration(mesh, (), mode, pipefusion=pipefusion)
                steps.append(Step(tried, self._workload, share, device, nowhere))
            slowing = self._work.constants.products_beside_transfers - 1 if is_slowed else 0.0
            self._pieces[key] = self._find_piece(steps, slowing, place_key)
        return self._pieces[key]

    def place_key(self, mesh: Mesh, order: tuple[str, ...]) -> PlaceKey | None:
        """What of an order of axes can change a bound: for each axis of the sequence its degree and
        how far apart its ranks are, a host at most. None where hosts don't all see the same.
        """
        key = (mesh.degrees, order)
        if key not in self._keys:
            self._keys[key] = self._find_place_key(mesh, order)
        return self._keys[key]

    def _find_place_key(self, mesh: Mesh, order: tuple[str, ...]) -> PlaceKey | None:
        host, runs = self._work.topology.ranks_per_host, []
        if not self._work.topology.hosts_are_alike:
            return None
        for axes in (("ulysses",), ("ring",)):
            degree, stride = 1, 1
            if strides := groups_along(mesh, order, axes).runs:
                ((degree, stride),) = strides
            if not is_even(degree, stride, host):
                return None
            runs.append((axes, (degree, host if stride % host == 0 else stride)))
        return tuple(runs)

    def _place_of(self, mesh: Mesh, order: tuple[str, ...]) -> Place | None:
        """Groups of the fewest ranks that each host sees as the mesh's own; more of them load what
        joins the hosts no less. None where they can't be told.
        """
        key = self.place_key(mesh, order)
        if key is None:
            return None
        if key not in self._places:
            host, axes = self._work.topology.ranks_per_host, dict(key)

            def groups_of(which: tuple[str, ...]) -> Groups:
                degree, stride = axes[which]
                ranks = math.ceil(degree * stride / host) * host
                return AxisGroups(((degree, stride),) if degree > 1 else (), ranks)

            self._places[key] = Place(groups_of)
        return self._places[key]

    def _find_piece(
        self, steps: Sequence[Step], slowing: float, place_key: PlaceKey | None
    ) -> Piece:
        """Products take `slowing` of their time longer."""
        work, runs = self._work, self._work.spec.blocks
        blocks_s = []
        for run in runs:
            blocks = [work.computing.computed(step, run) for step in steps]
            products_s = min(block.seconds - block.attention_s for block in blocks)
            blocks_s.append(min(block.seconds for block in blocks) + slowing * products_s)
            # linear attention exchanges over both axes at once, which such a place doesn't know
            if place_key is not None and not any(attention.linear for attention in run.attentions):
                # the more attention, the more it hides
                hiding = max(range(len(blocks)), key=lambda at: blocks[at].attention_s)
                blocks_s[-1] += self._exchanged(steps[hiding], run, blocks[hiding], place_key)
        counts, none = [run.count for run in runs], [0] * len(runs)
        on_cpu = steps[0].device.kind == "cpu"
        return Piece(
            blocks_s=sum(n * block_s for n, block_s in zip(counts, blocks_s, strict=True)),
            least_block_s=min(blocks_s),
            outside_s=min(work.computing.computed(step, None).seconds for step in steps),
            host_s=0.0 if on_cpu else min(work.launches.host_s(step, counts, 0) for step in steps),
            again_s=0.0 if on_cpu else min(work.launches.host_s(step, none, 0) for step in steps),
            exponent=work.launches.exponent(steps[0]) if len(steps) == 1 else math.inf,
        )

    def _exchanged(self, step: Step, run: BlockRun, block: Timed, place_key: PlaceKey) -> float:
        """What a block's exchanges take beside its computing; only a ring that passes on hides them
        behind it, so that they differ by mode.
        """
        hiding_s = block.attention_s if step.share.ring > 1 else 0.0
        key = (step.share, run.kind, place_key, step.device.name, hiding_s)
        if key not in self._exchanged_s:
            self._exchanged_s[key] = sum(map(_beside_s, self._work.activities.of_block(step, run)))
        return self._exchanged_s[key]


def _beside_s(activity: Activity) -> float:
    """What an activity of a block takes beside computing the block."""
    if isinstance(activity, RingAttention):
        return activity.merged_s + activity.waited_s
    return 0.0 if activity.part in ("blocks", "attention") else activity.timed.seconds
