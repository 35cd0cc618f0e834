"""What a part of the sequence takes at least on its way through a rank's blocks, wherever its ranks
are.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import mul
from typing import NamedTuple

from ditplan.planner.cost.activities import Activity, RingAttention
from ditplan.planner.cost.rank_work import RankWork
from ditplan.planner.cost.roofline import Timed, overlapped_s
from ditplan.planner.cost.share import RankShard
from ditplan.planner.cost.step import Place, Step
from ditplan.planner.memo import Memo
from ditplan.planner.network.groups import NOBODY, AxisGroups, Groups
from ditplan.planner.network.traffic import is_even
from ditplan.profiles.cluster import Device
from ditplan.profiles.configuration import Configuration, PipeFusion
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import Attention, BlockRun, Mode
from ditplan.profiles.workload import Workload

PlaceKey = tuple[tuple[int, int], tuple[int, int]]
"""Degree and stride of ulysses and of ring."""

StepIn = Callable[[Mode], Step]
"""A step in a mode, wherever its ranks are."""

AXES_OF_KEY: tuple[tuple[str, ...], ...] = (("ulysses",), ("ring",))


class Piece(NamedTuple):
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


@dataclass(frozen=True)
class _RunOfBlocks:
    """What computing a block of a run takes at least in any of some modes, and its products; and
    the step in the mode with most attention, which hides more, and what it computes.
    """

    run: BlockRun
    seconds: float
    products_s: float
    hiding: Step
    hidden_behind: Timed


@dataclass(frozen=True)
class _Computed:
    """What a rank computes at least: the blocks of each run, and what is in none."""

    runs: tuple[_RunOfBlocks, ...]
    outside_s: float


@dataclass(frozen=True)
class _Launched:
    """The part of a piece that the host has."""

    host_s: float
    again_s: float
    exponent: float


class LeastPieces:
    """Finds pieces, each once."""

    def __init__(self, work: RankWork, workload: Workload) -> None:
        self._work, self._workload = work, workload
        self._counts = [run.count for run in work.spec.blocks]
        first_of: dict[tuple[Attention, ...], str] = {}
        self._exchanging_like = {
            run.kind: first_of.setdefault(run.attentions, run.kind) for run in work.spec.blocks
        }
        self._places: Memo[PlaceKey, Place] = Memo()
        self._computed: Memo[tuple[object, ...], _Computed] = Memo()
        self._launched: Memo[tuple[object, ...], _Launched] = Memo()
        self._exchanged_s: Memo[tuple[object, ...], float] = Memo()
        self._pieces: Memo[tuple[object, ...], Piece] = Memo()

    def of(
        self,
        mesh: Mesh,
        place_key: PlaceKey | None,
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
        key = (share, place_key, device.name, modes, is_slowed)
        if key not in self._pieces:

            def step_in(mode: Mode) -> Step:
                tried = Configuration(mesh, (), mode, pipefusion=pipefusion)
                return Step(tried, self._workload, share, device, Place(lambda axes: NOBODY))

            computed = self._computed_in(share, device, modes, step_in)
            launched = self._launched_in(mesh, device, modes, step_in)
            slowing = self._work.constants.products_beside_transfers - 1 if is_slowed else 0.0
            self._pieces[key] = self._find_piece(computed, launched, slowing, place_key)
        return self._pieces[key]

    def place_key(self, mesh: Mesh, strides: Mapping[str, int]) -> PlaceKey | None:
        """What of an order of axes can change a bound, by how far apart each axis' ranks are: for
        each axis of the sequence its degree and that distance, a host at most. None where hosts
        don't all see the same.
        """
        if not self._work.topology.hosts_are_alike:
            return None
        host, found = self._work.topology.ranks_per_host, []
        for degree, stride in ((mesh.ulysses, strides["ulysses"]), (mesh.ring, strides["ring"])):
            if degree > 1 and not is_even(degree, stride, host):
                return None
            apart = host if stride % host == 0 else stride
            found.append((degree, apart if degree > 1 else 1))
        return found[0], found[1]

    def _place(self, key: PlaceKey) -> Place:
        """Groups of the fewest ranks that each host sees as the mesh's own; more of them load what
        joins the hosts no less.
        """
        if key not in self._places:
            host, runs = (
                self._work.topology.ranks_per_host,
                dict(zip(AXES_OF_KEY, key, strict=True)),
            )

            def groups_of(which: tuple[str, ...]) -> Groups:
                degree, stride = runs[which]
                ranks = math.ceil(degree * stride / host) * host
                return AxisGroups(((degree, stride),) if degree > 1 else (), ranks)

            self._places[key] = Place(groups_of)
        return self._places[key]

    def _find_piece(
        self, computed: _Computed, launched: _Launched, slowing: float, place_key: PlaceKey | None
    ) -> Piece:
        """Products take `slowing` of their time longer."""
        blocks_s = []
        for run in computed.runs:
            blocks_s.append(run.seconds + slowing * run.products_s)
            # linear attention exchanges over both axes at once, which such a place doesn't know
            if place_key is not None and not any(a.linear for a in run.run.attentions):
                blocks_s[-1] += self._exchanged(run, place_key)
        return Piece(
            blocks_s=sum(map(mul, self._counts, blocks_s)),
            least_block_s=min(blocks_s),
            outside_s=computed.outside_s,
            host_s=launched.host_s,
            again_s=launched.again_s,
            exponent=launched.exponent,
        )

    def _computed_in(
        self, share: RankShard, device: Device, modes: tuple[Mode, ...], step_in: StepIn
    ) -> _Computed:
        """What is computed in any of the modes, wherever ranks are."""
        unlike = tuple(dict.fromkeys(map(self._work.computing.like_mode, modes)))
        key = (share, device.name, unlike)
        if key not in self._computed:
            self._computed[key] = self._compute(list(map(step_in, unlike)))
        return self._computed[key]

    def _compute(self, steps: Sequence[Step]) -> _Computed:
        computing, runs = self._work.computing, []
        for run in self._work.spec.blocks:
            blocks = [computing.computed(step, run) for step in steps]
            # the more attention, the more it hides
            hiding = max(range(len(blocks)), key=lambda at: blocks[at].attention_s)
            runs.append(
                _RunOfBlocks(
                    run,
                    seconds=min(block.seconds for block in blocks),
                    products_s=min(block.seconds - block.attention_s for block in blocks),
                    hiding=steps[hiding],
                    hidden_behind=blocks[hiding],
                )
            )
        outside_s = min(computing.computed(step, None).seconds for step in steps)
        return _Computed(tuple(runs), outside_s)

    def _launched_in(
        self, mesh: Mesh, device: Device, modes: tuple[Mode, ...], step_in: StepIn
    ) -> _Launched:
        """What the host launches in any of the modes."""
        key = (device.name, modes, mesh.ring, mesh.ulysses > 1)
        if key not in self._launched:
            launches, on_cpu = self._work.launches, device.kind == "cpu"
            steps, none = list(map(step_in, modes)), [0] * len(self._counts)
            self._launched[key] = _Launched(
                0.0 if on_cpu else min(launches.host_s(one, self._counts, 0) for one in steps),
                0.0 if on_cpu else min(launches.host_s(one, none, 0) for one in steps),
                launches.exponent(steps[0]) if len(steps) == 1 else math.inf,
            )
        return self._launched[key]

    def _exchanged(self, block: _RunOfBlocks, place_key: PlaceKey) -> float:
        """What a block's exchanges take beside its computing: the same in all with such attentions.
        Only a ring that passes on hides them behind it, so that they differ by mode.
        """
        step, run = block.hiding, block.run
        hiding_s = block.hidden_behind.attention_s if step.share.ring > 1 else 0.0
        kind = self._exchanging_like[run.kind]
        key = (step.share, kind, place_key, step.device.name, hiding_s)
        if key not in self._exchanged_s:
            place = self._place(place_key)
            placed = Step(step.configuration, step.workload, step.share, step.device, place)
            activities = self._work.activities.of_block(placed, run)
            self._exchanged_s[key] = sum(map(_beside_s, activities))
        return self._exchanged_s[key]


def _beside_s(activity: Activity) -> float:
    """What an activity of a block takes beside computing the block."""
    if isinstance(activity, RingAttention):
        return activity.merged_s + activity.waited_s
    return 0.0 if activity.part in ("blocks", "attention") else activity.timed.seconds
