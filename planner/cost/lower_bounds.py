"""What plans cost at least, wherever their ranks are: cheap to find, never above their prices.

docs/lower_bounds.md says of each term why it is none too much.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import itemgetter, mul
from typing import NamedTuple

from ditplan.planner.constants import minds_transfers
from ditplan.planner.cost.least_pieces import LeastPieces, Piece, PlaceKey
from ditplan.planner.cost.memory import MemoryModel
from ditplan.planner.cost.rank_work import RankWork
from ditplan.planner.cost.share import RankShard, calls_of, samples_of
from ditplan.planner.memo import Memo
from ditplan.planner.network.groups import AxisGroups
from ditplan.planner.space.candidate import Setting
from ditplan.profiles.cluster import Device
from ditplan.profiles.configuration import Configuration, PipeFusion
from ditplan.profiles.mesh import Mesh, strides_of
from ditplan.profiles.workload import Workload

ROUNDING = 1 - 1e-9
"""A bound is a sum in another order than the price."""

PieceOf = Callable[[RankShard, bool], Piece]
"""What a share takes at least, its products slowed by transfers or not."""

OrderKey = tuple[PlaceKey | None, bool]
"""What of an order of axes can change bounds: where a sequence's ranks are, and whether a patch's
products run beside transfers that they mind."""


class _Patches(NamedTuple):
    """What the patches of a step take at least: all of them through all stages, the slowest of them
    through all stages, all of them in one stage, and in one of a single block; `fewest` are how
    many there are at least.
    """

    fewest: int
    all_s: float
    slowest_s: float
    stage_s: float
    first_s: float


class LowerBounds:
    """Lower bounds of the plans of a workload, however they are divided into stages.

    Computing and the exchanges of blocks count in full. Of what crosses between stages and what
    puts outputs together only the start of each transfer does, nothing where any was measured.
    """

    def __init__(self, work: RankWork, memory: MemoryModel, workload: Workload) -> None:
        self._work, self._memory, self._workload = work, memory, workload
        self._pieces = LeastPieces(work, workload)
        cluster = work.topology.cluster
        self._devices = list({device.name: device for device in work.devices}.values())
        self._scheduler_s = [work.computing.scheduler(workload, d).seconds for d in self._devices]
        # memory has no other say in what is held
        self._kinds_of_devices = list({device.kind: device for device in self._devices}.values())
        self._is_measured = bool(work.profile or cluster.collectives)
        self._kinds: Memo[tuple[int, ...], Sequence[tuple[RankShard, int]]] = Memo()
        self._slowed: Memo[tuple[int, int], bool] = Memo()
        self._start_s = 0.0 if cluster.collectives else work.constants.collective_launch_s

    def order_key(self, mesh: Mesh, order: tuple[str, ...]) -> OrderKey:
        """Orders of a mesh's axes that have it in common have the same bounds."""
        strides = strides_of(mesh, order)
        return self._pieces.place_key(mesh, strides), self._is_slowed(mesh, strides["pipefusion"])

    def least_bytes(self, mesh: Mesh, settings: Sequence[Setting]) -> int:
        """What the rank that holds most has at least in its memory with any of some settings.

        Without graphs, and with few of them where each patch has its own, a plan needs least;
        with its weights in pieces where only that can fit.
        """
        pipefusion, mode = min(settings, key=_by_memory)
        candidate = Configuration(mesh, (), mode, pipefusion=pipefusion)
        least = self._held_bytes(candidate)
        room = max(device.memory_bytes for device in self._devices)
        if least > room and candidate.can_share_weights:
            return self._held_bytes(replace(candidate, weights="sharded"))
        return least

    def _held_bytes(self, candidate: Configuration) -> int:
        memory, workload, stages = self._memory, self._workload, candidate.mesh.pipefusion
        if candidate.pipefusion is None:
            sizes = (memory.of(candidate, workload, one) for one in self._kinds_of_devices)
            return min(one.total_bytes for one in sizes)
        blocks = memory.block_bytes(candidate, workload)
        counts = [run.count for run in self._work.spec.blocks]
        in_all: int = sum(map(mul, counts, blocks))
        fair = max(math.ceil(in_all / stages), math.ceil(sum(counts) / stages) * min(blocks))
        beside = (memory.beside_blocks(candidate, workload, d) for d in self._kinds_of_devices)
        return min(beside) + fair

    def least_s(self, mesh: Mesh, key: OrderKey, settings: Sequence[Setting]) -> float:
        """Seconds of the denoising loop that a plan of a mesh takes at least, on whatever ranks,
        with any of some settings and its axes in an order with such a key. Settings with the same
        PipeFusion stand together.
        """
        patchings = [patching for patching, _ in itertools.groupby(settings, key=itemgetter(0))]
        modes = tuple(dict.fromkeys([mode for _, mode in settings]))
        if len(patchings) > 1 and self._is_measured:
            # of patches that aren't computed only those that were asked for are known
            return 0.0
        (place_key, is_slowed), whole = key, self._work.shares.of(mesh, self._workload)
        loops_s = []
        for device, scheduler_s in zip(self._devices, self._scheduler_s, strict=True):

            def piece_of(share: RankShard, is_slowed: bool, device: Device = device) -> Piece:
                return self._pieces.of(
                    mesh, place_key, modes, patchings[0], device, share, is_slowed=is_slowed
                )

            patched = [patching for patching in patchings if patching is not None]
            if patched:
                loops_s.append(
                    self._patched_s(mesh, patched, whole, scheduler_s, piece_of, is_slowed)
                )
            else:
                loops_s.append(self._stepped_s(mesh, piece_of(whole, False), scheduler_s))
        return ROUNDING * min(loops_s)

    def _stepped_s(self, mesh: Mesh, piece: Piece, scheduler_s: float) -> float:
        gathers = (mesh.sequence_parallel > 1) + (mesh.batch_parallel > 1)
        call_s = piece.through_s(1, gathers * self._start_s)
        calls = calls_of(mesh, self._work.spec, self._workload)
        return self._workload.steps * (calls * call_s + scheduler_s)

    def _patched_s(
        self,
        mesh: Mesh,
        patchings: Sequence[PipeFusion],
        whole_share: RankShard,
        scheduler_s: float,
        piece_of: PieceOf,
        is_slowed: bool,
    ) -> float:
        """A warm-up step is all stages one after the other. Then the busiest stage has no less to
        do than the mean, nor than its blocks, and a patch's steps follow each other.
        """
        work, workload, stages = self._work, self._workload, mesh.pipefusion
        whole_s = piece_of(whole_share, False).through_s(stages)
        numbers = list(dict.fromkeys(patching.patches for patching in patchings))
        if len(numbers) == 1 or mesh.ring > 1:
            # a ring's transfers are hidden behind more where patches attend to kept keys meanwhile
            known = [self._known_patches(mesh, one, piece_of, is_slowed) for one in numbers]
            patches = _Patches(*map(min, zip(*known, strict=True)))
        else:
            patches = self._any_patches(piece_of(whole_share, is_slowed), stages, numbers)
        scheduler_s += work.constants.patch_switch_s
        gather_s, passes_s = (
            self._start_s * (degree > 1) for degree in (mesh.sequence_parallel, mesh.batch_parallel)
        )
        between_s, links_s = scheduler_s + passes_s, stages * self._start_s
        step_s = max(
            (patches.all_s + patches.fewest * (between_s + gather_s)) / stages,
            patches.stage_s,
            patches.first_s + patches.fewest * between_s,
            patches.slowest_s + between_s + gather_s + links_s,
        )
        warm_s = whole_s + gather_s + passes_s + links_s + (patches.fewest + 1) * scheduler_s

        def loop_s(warmup_steps: int) -> float:
            steps = max(0, workload.steps - warmup_steps)
            setup_s = work.constants.patch_setup_s if steps else 0.0
            return warmup_steps * warm_s + setup_s + steps * step_s

        # either kind of step may take longer, so one of the extremes is least
        warmups = [patching.warmup_steps for patching in patchings]
        return min(loop_s(min(warmups)), loop_s(max(warmups)))

    def _known_patches(
        self, mesh: Mesh, patches: int, piece_of: PieceOf, is_slowed: bool
    ) -> _Patches:
        stages = mesh.pipefusion
        blocks = math.ceil(self._work.spec.block_count / stages)
        kinds = self._kinds_of(mesh, patches)
        pieces = [(piece_of(share, is_slowed), count) for share, count in kinds]
        through_s = [piece.through_s(stages) for piece, _ in pieces]
        return _Patches(
            fewest=patches,
            all_s=math.fsum(count * s for s, (_, count) in zip(through_s, pieces, strict=True)),
            slowest_s=max(through_s),
            stage_s=math.fsum(count * piece.stage_s(blocks) for piece, count in pieces),
            first_s=math.fsum(count * piece.stage_s(1) for piece, count in pieces),
        )

    def _any_patches(self, whole: Piece, stages: int, numbers: Sequence[int]) -> _Patches:
        """As many patches as one of the numbers, found sooner: by what the whole sequence takes.
        Patches together take no less, as far as that is computed.
        """
        all_s = whole.through_s(stages)
        return _Patches(
            fewest=min(numbers),
            all_s=all_s,
            slowest_s=all_s / max(numbers),
            stage_s=whole.stage_s(math.ceil(self._work.spec.block_count / stages)),
            first_s=whole.stage_s(1),
        )

    def _is_slowed(self, mesh: Mesh, stride: int) -> bool:
        """Whether a patch's products run beside transfers that they mind, wherever ranks are, by
        how far apart neighbours in pipelines are: not known where unlike devices are seated in all
        ways.
        """
        if self._work.topology.has_different_devices or mesh.pipefusion == 1:
            return False
        line = (mesh.pipefusion, stride)
        if line not in self._slowed:
            lines = AxisGroups((line,), mesh.size)
            kinds = self._work.topology.kinds_within(lines)
            self._slowed[line] = minds_transfers(self._devices[0].name, kinds)
        return self._slowed[line]

    def _kinds_of(self, mesh: Mesh, patches: int) -> Sequence[tuple[RankShard, int]]:
        """The shares of patches that differ, with how many there are. Of those that are computed
        the smallest one stands for all with as much text, which cost no less.
        """
        samples = samples_of(mesh, self._work.spec, self._workload)
        key = (samples, mesh.ring, mesh.ulysses, patches)
        if key not in self._kinds:
            kinds: dict[object, list[RankShard]] = {}
            for share in self._work.shares.of_patches(mesh, self._workload, patches):
                kind = share if self._is_measured else share.tokens["text"]
                kinds.setdefault(kind, []).append(share)
            self._kinds[key] = [
                (min(alike, key=lambda share: share.predicted), len(alike))
                for alike in kinds.values()
            ]
        return self._kinds[key]


def _by_memory(setting: Setting) -> tuple[bool, int]:
    """Sorts settings by what they need: no graph, then one for each of few patches."""
    pipefusion, mode = setting
    return "graph" in mode, pipefusion.patches if pipefusion else 0
