"""What plans cost at least, wherever their ranks are: cheap to find, never above their prices."""

import math
from bisect import bisect_right, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from ditplan.planner.constants import minds_transfers
from ditplan.planner.cost.activities import Activity, RingAttention
from ditplan.planner.cost.memory import MemoryModel
from ditplan.planner.cost.rank_work import RankWork
from ditplan.planner.cost.roofline import Timed, overlapped_s
from ditplan.planner.cost.share import RankShard, calls_of
from ditplan.planner.cost.step import Place, Step
from ditplan.planner.memo import Memo
from ditplan.planner.network.groups import AxisGroups, Groups, groups_along
from ditplan.planner.network.traffic import is_even
from ditplan.profiles.cluster import Device
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import BlockRun, Mode
from ditplan.profiles.plan import Quality
from ditplan.profiles.workload import Workload

ROUNDING = 1 - 1e-9
"""A floor is a sum in another order than the price."""

PlaceKey = tuple[tuple[tuple[str, ...], tuple[int, int]], ...]

PieceOf = Callable[[RankShard, bool], "_Piece"]
"""What a share costs, its products slowed by transfers or not."""


class LowerBounds:
    """Lower bounds of the latency and memory of candidates, whatever their division into stages and
    their mode.

    Computing and the exchanges of blocks count in full. Of what crosses between stages and what
    puts outputs together only the start of each transfer does, nothing where any was measured.
    """

    def __init__(
        self, work: RankWork, memory: MemoryModel, workload: Workload, modes: Sequence[Mode]
    ) -> None:
        self._work, self._memory, self._workload, self._modes = work, memory, workload, modes
        cluster = work.topology.cluster
        self._devices = list({device.name: device for device in work.devices}.values())
        self._is_measured = bool(work.profile or cluster.collectives)
        self._places: Memo[PlaceKey, Place] = Memo()
        self._keys: Memo[tuple[tuple[int, ...], tuple[str, ...]], PlaceKey | None] = Memo()
        self._exchanged_s: Memo[tuple[object, ...], float] = Memo()
        self._pieces: Memo[tuple[object, ...], _Piece] = Memo()
        self._kinds: Memo[tuple[RankShard, ...], Sequence[tuple[RankShard, int]]] = Memo()
        self._slowed: Memo[tuple[tuple[int, int], ...], bool] = Memo()
        self._start_s = 0.0 if cluster.collectives else work.constants.collective_launch_s

    def least_s(self, candidate: Configuration) -> float:
        """Seconds of the denoising loop in the candidate's mode, with its order of axes but on any
        ranks.
        """
        return self._loop_s(candidate, (candidate.mode,))

    def of_modes(self, candidates: Sequence[Configuration]) -> float:
        """The same of candidates that differ in their mode alone."""
        return self._loop_s(candidates[0], [candidate.mode for candidate in candidates])

    def of_settings(self, candidate: Configuration, patches: Sequence[int]) -> float:
        """The same in any mode and with any of these numbers of patches, found sooner: by what the
        whole sequence takes. Patches together take no less, as far as that is computed; where it
        was measured nothing is known.
        """
        if self._is_measured:
            return 0.0
        return self._loop_s(candidate, self._modes, (min(patches), max(patches)))

    def least_bytes(self, candidate: Configuration) -> int:
        """Bytes of the rank that holds most; with its weights in pieces where only that can fit."""
        least = self._bytes(candidate)
        room = max(device.memory_bytes for device in self._devices)
        if least > room and candidate.can_share_weights:
            return self._bytes(replace(candidate, weights="sharded"))
        return least

    def _bytes(self, candidate: Configuration) -> int:
        sizes = [self._memory.of(candidate, self._workload, device) for device in self._devices]
        least = min(memory.total_bytes for memory in sizes)
        if candidate.pipefusion is None:
            return least
        counts = self._memory.fullest_stage(candidate, self._workload)
        blocks = self._memory.block_bytes(candidate, self._workload)
        held = sum(n * size for n, size in zip(counts, blocks, strict=True))
        runs, stages = self._work.spec.blocks, candidate.mesh.pipefusion
        in_all = sum(run.count * size for run, size in zip(runs, blocks, strict=True))
        number = sum(run.count for run in runs)
        fair = max(math.ceil(in_all / stages), math.ceil(number / stages) * min(blocks))
        return least - held + fair

    def order_key(self, mesh: Mesh, order: tuple[str, ...]) -> object:
        """Orders of a mesh's axes that have it in common have the same floors."""
        slowed = [self._is_slowed(mesh, order, device) for device in self._devices]
        return self._place_key(mesh, order), tuple(slowed)

    def _place_key(self, mesh: Mesh, order: tuple[str, ...]) -> PlaceKey | None:
        """What of an order of axes can change a floor: for each axis of the sequence its degree and
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
            if found := groups_along(mesh, order, axes).runs:
                ((degree, stride),) = found
            if not is_even(degree, stride, host):
                return None
            runs.append((axes, (degree, host if stride % host == 0 else stride)))
        return tuple(runs)

    def _place_of(self, candidate: Configuration) -> Place | None:
        """Groups of the fewest ranks that each host sees as the candidate's own; more of them load
        what joins the hosts no less. None where they can't be told.
        """
        key = self._place_key(candidate.mesh, candidate.order)
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

    def _loop_s(
        self,
        candidate: Configuration,
        modes: Sequence[Mode],
        patches: tuple[int, int] | None = None,
    ) -> float:
        """In any of these modes; with so many patches at least and at most, or the candidate's."""
        loops_s = []
        for device in self._devices:
            piece_of = partial(self._piece, candidate, device, tuple(modes))
            if candidate.pipefusion:
                loops_s.append(self._patched_s(candidate, device, piece_of, patches))
            else:
                loops_s.append(self._stepped_s(candidate, device, piece_of))
        return ROUNDING * min(loops_s)

    def _stepped_s(self, candidate: Configuration, device: Device, piece_of: PieceOf) -> float:
        work, workload, mesh = self._work, self._workload, candidate.mesh
        piece = piece_of(work.shares.of(mesh, workload), False)
        gathers = (mesh.sequence_parallel > 1) + (mesh.batch_parallel > 1)
        call_s = piece.through_s(1, gathers * self._start_s)
        calls = calls_of(mesh, work.spec, workload)
        return workload.steps * (calls * call_s + work.scheduler(workload, device).seconds)

    def _patched_s(
        self,
        candidate: Configuration,
        device: Device,
        piece_of: PieceOf,
        patches: tuple[int, int] | None,
    ) -> float:
        """A warm-up step is all stages one after the other. Then the busiest stage has no less to
        do than the mean, nor than its blocks, and a patch's steps follow each other.
        """
        work, workload, part = self._work, self._workload, candidate.pipefusion
        assert part is not None
        mesh, stages = candidate.mesh, candidate.mesh.pipefusion
        whole_share = work.shares.of(mesh, workload)
        whole_s = piece_of(whole_share, False).through_s(stages)
        blocks = math.ceil(work.spec.block_count / stages)
        is_slowed = self._is_slowed(mesh, candidate.order, device)
        if patches is None:
            fewest = part.patches
            kinds = self._kinds_of(work.shares.of_patches(mesh, workload, fewest))
            found = [(piece_of(share, is_slowed), count) for share, count in kinds]
            all_s = math.fsum(count * piece.through_s(stages) for piece, count in found)
            slowest_s = max(piece.through_s(stages) for piece, _ in found)
            stage_s = math.fsum(count * piece.stage_s(blocks) for piece, count in found)
            first_s = math.fsum(count * piece.stage_s(1) for piece, count in found)
        else:
            fewest, most = patches
            whole = piece_of(whole_share, is_slowed)
            all_s = whole.through_s(stages)
            slowest_s = all_s / most
            stage_s, first_s = whole.stage_s(blocks), whole.stage_s(1)
        scheduler_s = work.scheduler(workload, device).seconds + work.constants.patch_switch_s
        gather_s, passes_s = (
            self._start_s * (degree > 1) for degree in (mesh.sequence_parallel, mesh.batch_parallel)
        )
        between_s, links_s = scheduler_s + passes_s, stages * self._start_s
        step_s = max(
            (all_s + fewest * (between_s + gather_s)) / stages,
            stage_s,
            first_s + fewest * between_s,
            slowest_s + between_s + gather_s + links_s,
        )
        warm_s = whole_s + gather_s + passes_s + links_s + (fewest + 1) * scheduler_s
        steps = max(0, workload.steps - part.warmup_steps)
        setup_s = work.constants.patch_setup_s if steps else 0.0
        return part.warmup_steps * warm_s + setup_s + steps * step_s

    def _is_slowed(self, mesh: Mesh, order: tuple[str, ...], device: Device) -> bool:
        """Whether a patch's products run beside transfers that they mind, wherever ranks are: not
        known where unlike devices are seated in all ways.
        """
        if self._work.topology.has_different_devices:
            return False
        lines = groups_along(mesh, order, ("pipefusion",))
        if lines.runs not in self._slowed:
            kinds = self._work.topology.kinds_within(lines)
            self._slowed[lines.runs] = minds_transfers(device.name, kinds)
        return self._slowed[lines.runs]

    def _kinds_of(self, shares: tuple[RankShard, ...]) -> Sequence[tuple[RankShard, int]]:
        """The shares of patches that differ, with how many there are. Of those that are computed
        the smallest one stands for all with as much text, which cost no less.
        """
        if shares not in self._kinds:
            kinds: dict[object, list[RankShard]] = {}
            for share in shares:
                kind = share if self._is_measured else share.tokens["text"]
                kinds.setdefault(kind, []).append(share)
            self._kinds[shares] = [
                (min(alike, key=lambda share: share.predicted), len(alike))
                for alike in kinds.values()
            ]
        return self._kinds[shares]

    def _piece(
        self,
        candidate: Configuration,
        device: Device,
        modes: tuple[Mode, ...],
        share: RankShard,
        is_slowed: bool,
    ) -> "_Piece":
        # a share says itself whether it is a patch's, which is all that PipeFusion changes here
        place_key = self._place_key(candidate.mesh, candidate.order)
        key = (share, place_key, device.name, modes, is_slowed)
        if key not in self._pieces:
            place = self._place_of(candidate)
            nowhere = place or Place(lambda axes: ())
            steps = []
            for mode in modes:
                tried = Configuration(candidate.mesh, (), mode, pipefusion=candidate.pipefusion)
                steps.append(Step(tried, self._workload, share, device, nowhere))
            slowing = self._work.constants.products_beside_transfers - 1 if is_slowed else 0.0
            self._pieces[key] = self._find_piece(steps, slowing, place_key)
        return self._pieces[key]

    def _find_piece(
        self, steps: Sequence[Step], slowing: float, place_key: PlaceKey | None
    ) -> "_Piece":
        """Products take `slowing` of their time longer."""
        work, runs = self._work, self._work.spec.blocks
        blocks_s = []
        for run in runs:
            found = [work.computed(step, run) for step in steps]
            products_s = min(block.seconds - block.attention_s for block in found)
            blocks_s.append(min(block.seconds for block in found) + slowing * products_s)
            # linear attention exchanges over both axes at once, which such a place doesn't know
            if place_key is not None and not any(attention.linear for attention in run.attentions):
                # the more attention, the more it hides
                hiding = max(range(len(found)), key=lambda at: found[at].attention_s)
                blocks_s[-1] += self._exchanged(steps[hiding], run, found[hiding], place_key)
        counts, none = [run.count for run in runs], [0] * len(runs)
        on_cpu = steps[0].device.kind == "cpu"
        return _Piece(
            blocks_s=sum(n * block_s for n, block_s in zip(counts, blocks_s, strict=True)),
            least_block_s=min(blocks_s),
            outside_s=min(work.computed(step, None).seconds for step in steps),
            host_s=0.0 if on_cpu else min(work.host_s(step, counts, 0) for step in steps),
            again_s=0.0 if on_cpu else min(work.host_s(step, none, 0) for step in steps),
            exponent=work.launch_exponent(steps[0]) if len(steps) == 1 else math.inf,
        )

    def _exchanged(self, step: Step, run: BlockRun, block: Timed, place_key: PlaceKey) -> float:
        """What a block's exchanges take beside its computing; only a ring that passes on hides them
        behind it, so that they differ by mode.
        """
        hiding_s = block.attention_s if step.share.ring > 1 else 0.0
        key = (step.share, run.kind, place_key, step.device.name, hiding_s)
        if key not in self._exchanged_s:
            self._exchanged_s[key] = sum(map(_beside_s, self._work.block(step, run)))
        return self._exchanged_s[key]


def _beside_s(activity: Activity) -> float:
    """What an activity of a block takes beside computing the block."""
    if isinstance(activity, RingAttention):
        return activity.merged_s + activity.waited_s
    return 0.0 if activity.part in ("blocks", "attention") else activity.timed.seconds


@dataclass(frozen=True)
class _Piece:
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


class ParetoFront:
    """Plans that no other beats in latency, memory and quality at once, of those with the fewest
    GPUs first.
    """

    def __init__(self) -> None:
        self._by_quality: dict[tuple[float, ...], list[tuple[float, int]]] = {}

    def add(self, latency_s: float, memory_bytes: int, quality: Quality) -> None:
        """Notes a plan that has no fewer GPUs than those before it."""
        points = self._by_quality.setdefault(worth_of(quality), [])
        if self._has_better(points, latency_s, memory_bytes):
            return
        kept = [p for p in points if p[0] < latency_s or p[1] < memory_bytes]
        insort(kept, (latency_s, memory_bytes))
        self._by_quality[worth_of(quality)] = kept

    def beats(self, least_s: float, least_bytes: float, quality: Quality) -> bool:
        """Whether a plan noted before is at least as good as one with no fewer GPUs that takes at
        least this.
        """
        worth = worth_of(quality)
        return any(
            known <= worth and self._has_better(points, least_s, least_bytes)
            for known, points in self._by_quality.items()
        )

    def _has_better(self, points: list[tuple[float, int]], seconds: float, count: float) -> bool:
        """Later points are slower and smaller, so of those that are as fast the last one counts."""
        place = bisect_right(points, (seconds, math.inf))
        return place > 0 and points[place - 1][1] <= count


def worth_of(quality: Quality) -> tuple[float, ...]:
    """Exact before measured distances, smaller ones first, before what isn't known."""
    if quality.exact:
        return (0.0,)
    return (2.0,) if quality.relative_l2 is None else (1.0, quality.relative_l2)
