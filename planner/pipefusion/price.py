"""What PipeFusion costs: the loop's warm-up on the whole sequence, then patches through stages."""

from collections import Counter
from collections.abc import Sequence
from functools import cached_property

from ditplan.planner.constants import minds_transfers
from ditplan.planner.cost.breakdown import CostBreakdown, worst_source
from ditplan.planner.cost.mixed_devices import RankKinds
from ditplan.planner.cost.rank_work import RankWork
from ditplan.planner.cost.roofline import Timed
from ditplan.planner.cost.step import Step
from ditplan.planner.memo import Memo
from ditplan.planner.network.topology import Estimate
from ditplan.planner.pipefusion.partition import StageWork, balanced_stages, balanced_unlike_stages
from ditplan.planner.pipefusion.schedule import Durations, pipeline_s
from ditplan.planner.pipefusion.stage_times import LoopTimes, Piece, Pieces, StageBlocks
from ditplan.planner.space.stage_blocks import folded, runs_of_visits, unfolded
from ditplan.profiles.configuration import Configuration, PipeFusion
from ditplan.profiles.workload import Workload

PRODUCTS = "blocks"
"""The part of a block that isn't attention."""


class PipeFusionCost:
    """A PipeFusion candidate on the devices of its stages, priced for any division into stages."""

    def __init__(
        self,
        work: RankWork,
        candidate: Configuration,
        workload: Workload,
        kinds_of_stages: Sequence[RankKinds],
    ) -> None:
        """`candidate` has a PipeFusion part, whose blocks per stage have no say here.
        `kinds_of_stages` are the ranks of each stage.
        """
        assert candidate.pipefusion is not None
        self._work, self._candidate, self._workload = work, candidate, workload
        self._part, self._stages = candidate.pipefusion, candidate.mesh.pipefusion
        self._tasks_s: Memo[tuple[object, ...], Sequence[float]] = Memo()
        self._lines = work.place(candidate).groups(("pipefusion",))
        mesh, uneven = candidate.mesh, candidate.token_shares
        self._whole_share = work.shares.of(mesh, workload, uneven)
        shares = work.shares.of_patches(mesh, workload, self._part.patches, uneven)
        # patches of one size have equal shares
        self._kinds_of_patches = Counter(shares)
        self._firsts = [shares.index(share) for share in self._kinds_of_patches]
        numbers = {share: number for number, share in enumerate(self._kinds_of_patches)}
        self._patches = tuple(numbers[share] for share in shares)
        found = {
            rank_kinds: self._pieces(rank_kinds) for rank_kinds in dict.fromkeys(kinds_of_stages)
        }
        self._kinds, self._pieces_of = kinds_of_stages, found
        self._of_stage = tuple(found[rank_kinds] for rank_kinds in kinds_of_stages)
        self._first = self._of_stage[0]
        self._are_alike = len(found) == 1
        self._is_on_cpu = self._first.whole.step.device.kind == "cpu"
        self._is_folded = self._part.schedule == "folded"

    def balanced(self, sizes: Sequence[float], rooms: Sequence[float]) -> tuple[int, ...]:
        """Blocks per stage so that the slowest stage is fastest and none holds more than its room.

        `sizes` are those of one block of each run.
        """
        runs = self._work.spec.blocks
        block_sizes = [
            size for size, run in zip(sizes, runs, strict=True) for _ in range(run.count)
        ]
        found = {
            rank_kinds: self._stage_work(pieces) for rank_kinds, pieces in self._pieces_of.items()
        }
        stages = [
            StageWork(*found[rank_kinds], room)
            for rank_kinds, room in zip(self._kinds, rooms, strict=True)
        ]
        between_s = sum(self._between_s) if self._patched_steps else 0.0
        predicting = self._of_stage[0 if self._is_folded else -1]
        gather_s = sum(times * piece.gather.total for piece, times in self._kinds_of(predicting))
        extra_s = (between_s + gather_s, 0.0) if self._is_folded else (between_s, gather_s)
        if self._is_folded:
            block_sizes = folded(block_sizes)
            stages = [
                StageWork(folded(stage.seconds), 2 * stage.least_s, stage.room) for stage in stages
            ]
        divided = self._divided(stages, block_sizes, extra_s)
        return unfolded(divided, self._work.spec.block_count) if self._is_folded else divided

    def _divided(
        self, stages: Sequence[StageWork], sizes: Sequence[float], extra_s: tuple[float, float]
    ) -> tuple[int, ...]:
        if not self._are_alike:
            return balanced_unlike_stages(stages, sizes, extra_s)
        return balanced_stages(
            stages[0].seconds,
            sizes,
            len(stages),
            extra_s=extra_s,
            least_s=stages[0].least_s,
            room=min(stage.room for stage in stages),
        )

    def _kinds_of(self, pieces: Pieces) -> Sequence[tuple[Piece, int]]:
        """What a stage runs most of the time."""
        return pieces.kinds if self._patched_steps else [(pieces.whole, 1)]

    def _stage_work(self, pieces: Pieces) -> tuple[list[float], float]:
        """The seconds of each block on a stage's ranks, and the least that any number takes."""
        kinds, runs = self._kinds_of(pieces), self._work.spec.blocks
        seconds: list[float] = []
        for number, run in enumerate(runs):
            one = [int(number == other) for other in range(len(runs))]
            block_s = sum(times * self._block_s(piece, number, one) for piece, times in kinds)
            seconds += [block_s] * run.count
        least_s = sum(times * self._replay_s(piece) for piece, times in kinds)
        return seconds, least_s

    def loop(self, part: PipeFusion) -> CostBreakdown:
        """All steps with these blocks per stage: seconds of the busiest stage by cause, and beside
        them `bubbles`, its waiting for other stages if links took no time, and `sends`, by how much
        links make the whole longer.
        """
        stages, times = self._stages_of(part), self.times(part)
        durations, warmup, steps = times.patched, times.warmup_steps, times.steps
        warm_of_stages_s, patched_s = times.warm_of_stages_s, durations.of_stages_s
        patched_s[0] += sum(durations.between_s)
        busy_s = [
            warmup * warm_s + steps * s
            for warm_s, s in zip(warm_of_stages_s, patched_s, strict=True)
        ]
        busy_s[0] += warmup * times.warm_scheduler_s + times.setup_s
        busiest = max(range(self._stages), key=lambda index: busy_s[index])
        ledger = self._busy(self._of_stage[busiest], stages[busiest], is_first=busiest == 0)

        one_warm_s = sum(warm_of_stages_s) + times.warm_passes_s + times.warm_scheduler_s
        free_s = pipeline_s(durations.with_free_links, steps)
        sends_s = pipeline_s(durations, steps, sending_computes=times.sending_computes) - free_s
        sends_s += warmup * times.warm_sends_s + times.agreement_s
        bubbles_s = warmup * one_warm_s + times.setup_s + free_s - ledger.total
        ledger.add("bubbles", Timed(max(0.0, bubbles_s), worst_source(ledger)))
        ledger.add("sends", Timed(max(0.0, sends_s), self._hops(self._first.whole)[0].source))
        self._book_bytes(ledger)
        return ledger

    def times(self, part: PipeFusion) -> LoopTimes:
        """How long everything in the loop takes with these blocks per stage."""
        stages = self._stages_of(part)
        coming_back = stages[:-1] if self._is_folded else []
        there = [self._tasks_of(place, stage, 0) for place, stage in enumerate(stages)]
        back = [self._tasks_of(place, stage, 1) for place, stage in enumerate(coming_back)]
        whole, kinds = self._first.whole, self._first.kinds
        hops_s = list(zip(*(self._hops_s(piece) for piece, _ in kinds), strict=True))
        return LoopTimes(
            warmup_steps=part.warmup_steps,
            warm_s=[seconds[0] for seconds in there],
            warm_back_s=[seconds[0] for seconds in back],
            warm_hop_s=self._hops_s(whole)[:-1],
            told_s=self._told_s(whole.back_bytes),
            warm_passes_s=whole.passes.total,
            warm_scheduler_s=self._warm_between_s,
            setup_s=self._setup_s,
            steps=self._patched_steps,
            patched=Durations(
                stage_s=[self._row(seconds[1:]) for seconds in there],
                back_s=[self._row(seconds[1:]) for seconds in back],
                hop_s=[self._row(of_kinds) for of_kinds in hops_s[: -1 if coming_back else None]],
                between_s=self._between_s,
            ),
            scheduler_s=self._scheduler.seconds,
            agreement_s=self._agreement_s,
            # on a CPU sending takes the cores that compute
            sending_computes=self._is_on_cpu or self._work.constants.stages_wait_to_send,
        )

    def _stages_of(self, part: PipeFusion) -> list[StageBlocks]:
        visits = runs_of_visits(self._work.spec.blocks, part)
        predicting = 0 if self._is_folded else self._stages - 1
        return [StageBlocks(tuple(of), stage == predicting) for stage, of in enumerate(visits)]

    @property
    def _patched_steps(self) -> int:
        return max(0, self._workload.steps - self._part.warmup_steps)

    def _pieces(self, rank_kinds: RankKinds) -> Pieces:
        """What a stage of such ranks runs."""
        asked, kinds = (self._candidate, self._workload, rank_kinds), []
        for first, (share, times) in zip(self._firsts, self._kinds_of_patches.items(), strict=True):
            step = self._work.step_of(*asked, share, first)
            kinds.append((self._piece(step, is_patch=True), times))
        whole = self._work.step_of(*asked, self._whole_share)
        return Pieces(self._piece(whole, is_patch=False), tuple(kinds))

    def _piece(self, step: Step, *, is_patch: bool) -> Piece:
        work, share = self._work, step.share
        booked = work.booked(step)
        return Piece(
            step=step,
            blocks=booked.blocks,
            total_s=tuple(block.total for block in booked.blocks),
            outside=booked.outside,
            gather=booked.gather,
            passes=booked.passes,
            onward_bytes=share.rows * work.spec.width * self._workload.dtype_bytes,
            back_bytes=work.activities.predicted_bytes(step, share.predicted),
            is_patch=is_patch,
        )

    def _row(self, seconds: Sequence[float]) -> list[float]:
        """The seconds of each patch, from those of each kind of them."""
        return [seconds[kind] for kind in self._patches]

    def _tasks_of(self, place: int, stage: StageBlocks, visit: int) -> Sequence[float]:
        """Seconds in which a stage computes the whole sequence, and each kind of patches, when it
        comes by.
        """
        key = (self._kinds[place], stage, visit)
        if key not in self._tasks_s:
            pieces, found = self._of_stage[place], []
            for piece in (pieces.whole, *(piece for piece, _ in pieces.kinds)):
                device_s = self._device_s(piece, stage, visit)
                found.append(device_s + self._waits_s(piece, stage, visit, device_s))
            self._tasks_s[key] = found
        return self._tasks_s[key]

    def _device_s(self, piece: Piece, stage: StageBlocks, visit: int) -> float:
        counts = stage.visits[visit]
        blocks_s = sum(n * s for n, s in zip(counts, piece.total_s, strict=True))
        blocks_s += self._slowed(piece, counts).seconds
        gather_s = piece.gather.total if stage.predicts_at(visit) else 0.0
        return blocks_s + piece.outside.total + gather_s

    def _slowed(self, piece: Piece, counts: Sequence[int]) -> Timed:
        """By how much a patch's products take longer beside transfers by kernels.

        A warm-up step computes nothing beside them.
        """
        if not (piece.is_patch and self._transfers_by_kernels(piece)):
            return Timed(0.0, "computed")
        products_s = sum(
            count * seconds
            for count, block in zip(counts, piece.blocks, strict=True)
            for (part, _), seconds in block.seconds.items()
            if part == PRODUCTS
        )
        return Timed((self._work.constants.products_beside_transfers - 1) * products_s, "computed")

    def _transfers_by_kernels(self, piece: Piece) -> bool:
        """Whether patches travel by kernels that the products of its device mind."""
        return minds_transfers(piece.step.device.name, self._kinds_of_links)

    @cached_property
    def _kinds_of_links(self) -> frozenset[str]:
        return self._work.topology.kinds_within(self._lines)

    def _waits_s(self, piece: Piece, stage: StageBlocks, visit: int, device_s: float) -> float:
        """By how much the host is longer at it."""
        if self._is_on_cpu:
            return 0.0
        gathers = stage.predicts_at(visit) and self._candidate.mesh.sequence_parallel > 1
        host_s = self._work.launches.host_s(piece.step, stage.visits[visit], int(gathers))
        return self._work.launches.waits_s(piece.step, host_s, device_s)

    def _block_s(self, piece: Piece, number: int, counts: Sequence[int]) -> float:
        """Seconds of one block, launches included."""
        device_s = piece.total_s[number]
        if self._is_on_cpu or "graph" in self._candidate.mode:
            return device_s
        nothing_s = self._work.launches.host_s(piece.step, [0] * len(counts), 0)
        host_s = self._work.launches.host_s(piece.step, counts, 0) - nothing_s
        return device_s + self._work.launches.waits_s(piece.step, host_s, device_s)

    def _replay_s(self, piece: Piece) -> float:
        """What a graph of any blocks takes at least, beside what is outside of them."""
        if self._is_on_cpu or "graph" not in self._candidate.mode:
            return 0.0
        none = [0] * len(self._work.spec.blocks)
        return max(0.0, self._work.launches.host_s(piece.step, none, 0) - piece.outside.total)

    @cached_property
    def _scheduler(self) -> Timed:
        """What a patch's own call of the pipeline does between two of the transformer's."""
        found = self._work.computing.scheduler(self._workload, self._first.whole.step.device)
        return Timed(found.seconds + self._work.constants.patch_switch_s, found.source)

    @cached_property
    def _between_s(self) -> list[float]:
        return self._row(
            [piece.passes.total + self._scheduler.seconds for piece, _ in self._first.kinds]
        )

    @property
    def _warm_between_s(self) -> float:
        """The first stage's scheduler steps in a warm-up step: of each patch, and of one more that
        shows whether tokens are mixed.
        """
        return (self._part.patches + 1) * self._scheduler.seconds

    def _hops_s(self, piece: Piece) -> list[float]:
        """A piece's transfers from each stage to the next, and back to the first."""
        return [hop.seconds for hop in self._hops(piece)]

    def _hops(self, piece: Piece) -> list[Estimate]:
        onward = self._work.topology.hops_s(piece.onward_bytes, self._lines)
        back = self._work.topology.hops_s(piece.back_bytes, self._lines)
        return [*onward[:-1], back[-1]]

    @cached_property
    def _agreement_s(self) -> float:
        """The first stage tells all others the final latents, of all pictures."""
        whole = self._first.whole
        one_bytes = whole.back_bytes / whole.step.share.batch
        return self._told_s(one_bytes * self._workload.batch)

    @property
    def _setup_s(self) -> float:
        return self._work.constants.patch_setup_s if self._patched_steps else 0.0

    def _told_s(self, count: float) -> float:
        """A broadcast over the stages: as much passes along the line as when all gather pieces."""
        piece_bytes = count / (self._stages - 1)
        return self._work.topology.collective_s("all_gather", piece_bytes, self._lines).seconds

    def _busy(self, pieces: Pieces, stage: StageBlocks, is_first: bool) -> CostBreakdown:
        """What a stage does in the loop, by cause."""
        ledger = CostBreakdown()
        warmup, steps = self._part.warmup_steps, self._patched_steps
        for piece, times in ((pieces.whole, warmup), *((p, n * steps) for p, n in pieces.kinds)):
            for visit, counts in enumerate(stage.visits):
                for count, block in zip(counts, piece.blocks, strict=True):
                    ledger.include(block, count * times)
                ledger.include(piece.outside, times)
                ledger.add(PRODUCTS, self._slowed(piece, counts), times)
                device_s = self._device_s(piece, stage, visit)
                waits_s = self._waits_s(piece, stage, visit, device_s)
                ledger.add("launch", Timed(waits_s, "computed"), times)
            if stage.predicts:
                ledger.include(piece.gather, times)
            if is_first or piece is pieces.whole:
                ledger.include(piece.passes, times)
        if is_first:
            patches = self._part.patches
            ledger.add("scheduler", self._scheduler, warmup * (patches + 1) + steps * patches)
            ledger.add("scheduler", Timed(self._setup_s, "computed"))
        return ledger

    def _book_bytes(self, ledger: CostBreakdown) -> None:
        """What crosses each kind of link in the loop.

        A block runs on one stage, so only that one's part of the groups that are priced exchange.
        """
        warmup, steps, stages = self._part.warmup_steps, self._patched_steps, self._stages
        whole, kinds = self._first.whole, self._first.kinds
        pieces = ((whole, warmup), *((p, n * steps) for p, n in kinds))
        for piece, times in pieces:
            moved = [
                *(
                    (b, times * r.count / stages)
                    for b, r in zip(piece.blocks, self._work.spec.blocks, strict=True)
                ),
                (piece.gather, times / stages),
                (piece.passes, times if piece is whole else times / stages),
            ]
            for booked, share in moved:
                for kind, count in booked.link_bytes.items():
                    ledger.link_bytes[kind] += count * share
        ways = 2 if self._is_folded else 1
        onward = ways * sum(piece.onward_bytes * times for piece, times in pieces)
        for position in range(self._stages - 1):
            self._book_hop(ledger, onward + warmup * whole.back_bytes, position)
        if not self._is_folded:
            back = sum(piece.back_bytes * times * steps for piece, times in kinds)
            self._book_hop(ledger, back, stages - 1)

    def _book_hop(self, ledger: CostBreakdown, count: float, position: int) -> None:
        hop = self._work.topology.hop_bytes(count, self._lines, position)
        for kind, moved in hop.items():
            ledger.link_bytes[kind] += moved
