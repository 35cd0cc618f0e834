"""What one rank does in a call of the transformer: its blocks, their exchanges, what is around."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from ditplan.planner.constants import CostConstants, ModeConstants, counts_on_all
from ditplan.planner.cost.activities import (
    Activity,
    CollectiveCost,
    Computation,
    RingAttention,
    seconds_of,
)
from ditplan.planner.cost.breakdown import SOURCES, CostBreakdown
from ditplan.planner.cost.mixed_devices import Load, RankKinds, RankLoads
from ditplan.planner.cost.roofline import DeviceTimes, Timed, at_data_sheets, overlapped_s
from ditplan.planner.cost.share import RankShard, RankShards, calls_of, values_per_token
from ditplan.planner.cost.step import Place, Step
from ditplan.planner.memo import Memo
from ditplan.planner.network.groups import Groups
from ditplan.planner.network.topology import Topology
from ditplan.planner.space.candidate import groups_of
from ditplan.profiles.cluster import PEER_OPERATIONS, Device, Operation
from ditplan.profiles.configuration import Configuration, RingVariant
from ditplan.profiles.family import family_of
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import Attention, BlockRun, Mode, ModelProfile, ModelSpec
from ditplan.profiles.workload import Dtype, Workload


class RankWork:
    """Prices what a rank does, by what was measured of the model and of the cluster.

    A device is known by its name, a run of blocks by its kind.
    """

    def __init__(
        self,
        topology: Topology,
        spec: ModelSpec,
        profile: ModelProfile | None,
        constants: CostConstants,
    ) -> None:
        self.topology, self.spec, self.constants = topology, spec, constants
        self.profile = profile
        self.devices = at_data_sheets(topology.cluster.devices, constants)
        self.shares = RankShards(spec, repeat_text=constants.text_with_every_patch)
        self._named = {device.name: device for device in self.devices}
        self._loads = RankLoads(self.shares, self._named)
        self._times: Memo[str, DeviceTimes] = Memo()
        self._places: Memo[tuple[int, ...], Place] = Memo()
        self._computed: Memo[tuple[object, ...], Timed] = Memo()
        self._host_s: Memo[tuple[object, ...], float] = Memo()

    def place(self, candidate: Configuration) -> Place:
        """Where the candidate's axes lie: the same one for all that differ in something else, as
        long as no other placement of its mesh is asked for.
        """
        degrees = candidate.mesh.degrees
        found = self._places.get(degrees)
        if found is None or found.placement != candidate.placement:
            found = Place(partial(groups_of, candidate), candidate.placement)
            self._places[degrees] = found
        return found

    def times_on(self, device: Device) -> DeviceTimes:
        """The durations of the model's parts on a device."""
        if device.name not in self._times:
            profile = self.profile
            known = profile if profile and profile.device == device.name else None
            self._times[device.name] = DeviceTimes(self.spec, known, device, self.constants)
        return self._times[device.name]

    def ring_variant(self, candidate: Configuration) -> RingVariant:
        """Over NVLink keys and values are gathered at once, which costs less than merging by lse.

        Elsewhere they are passed on behind the attention, which hides a slow link on most GPUs.
        Where padded text is masked, they are gathered everywhere. Of the backends that don't push,
        some always gather and the others always pass on.
        """
        return self._ring_variant(candidate, self.place(candidate))

    def _ring_variant(self, candidate: Configuration, place: Place) -> RingVariant:
        if self.constants.gathers_keys:
            return "gather"
        if not self.constants.pushes:
            return "pass"
        mask = family_of(self.spec.transformer_class).text_mask
        if mask and mask.input:
            return "gather"
        return "gather" if self.topology.can_push(place.groups(("ring",))) else "pass"

    def step_of(
        self,
        candidate: Configuration,
        workload: Workload,
        rank_kinds: RankKinds,
        share: RankShard,
        patch: int | None = None,
    ) -> Step:
        """A step of some ranks that wait for each other, on the whole sequence or a patch of it, of
        which none has more than `share`.
        """
        place = self.place(candidate)
        if len(rank_kinds) == 1 and candidate.token_shares is None:
            return Step(candidate, workload, share, self._named[rank_kinds[0][1]], place)
        loads = self._loads.of(candidate, workload, rank_kinds, patch)
        slowest = max(loads, key=lambda one: self.blocks_s(one, candidate.mode, workload.dtype))
        return Step(candidate, workload, share, slowest.device, place, loads=loads)

    def blocks_s(self, load: Load, mode: Mode, dtype: Dtype) -> float:
        """Seconds that computing all blocks takes."""
        runs = self.spec.blocks
        return sum(
            run.count * self._computed_by(load.share, load.device, run, mode, dtype).seconds
            for run in runs
        )

    def step(self, step: Step) -> CostBreakdown:
        """One denoising step of the busiest rank, with all blocks."""
        calls = calls_of(step.configuration.mesh, self.spec, step.workload)
        ledger = CostBreakdown()
        ledger.include_all(self._call(step), calls)
        ledger.add("scheduler", self.scheduler(step.workload, step.device))
        return ledger

    def _call(self, step: Step) -> CostBreakdown:
        ledger, mesh = CostBreakdown(), step.configuration.mesh
        for run in self.spec.blocks:
            ledger.include_all(self.of_block(step, run), run.count)
        for what in (self.of_outside, self.of_gather, self.of_cfg):
            ledger.include_all(what(step))
        gathers = (mesh.sequence_parallel > 1) + (mesh.batch_parallel > 1)
        host_s = self.host_s(step, [run.count for run in self.spec.blocks], gathers)
        if step.device.kind != "cpu":
            waits_s = self.launch_waits_s(step, host_s, ledger.total)
            ledger.add("launch", Timed(waits_s, "computed"))
        return ledger

    def of_block(self, step: Step, run: BlockRun) -> CostBreakdown:
        """One block of a run with its exchanges."""
        return self._booked(step, run.kind, self.block(step, run))

    def of_outside(self, step: Step) -> CostBreakdown:
        """What is in no block."""
        return self._booked(step, "outside", [Computation("outside", self.computed(step, None))])

    def of_gather(self, step: Step) -> CostBreakdown:
        """The output's tokens being put together again."""
        return self._booked(step, "gather", self.gather(step))

    def of_cfg(self, step: Step) -> CostBreakdown:
        """The exchange of the samples' outputs."""
        return self._booked(step, "cfg", self.cfg(step))

    def _booked(self, step: Step, what: str, activities: Iterable[Activity]) -> CostBreakdown:
        """What some activities take, found once for such a step at its place; not to be changed."""
        of, dtype = step.configuration, step.workload.dtype
        booked = step.place.booked
        key = (what, step.share, step.loads, step.device.name, of.mode, of.weights, dtype)
        if key not in booked:
            ledger = CostBreakdown()
            for activity in activities:
                self._book(ledger, activity)
            booked[key] = ledger
        return booked[key]

    def block(self, step: Step, run: BlockRun) -> Iterator[Activity]:
        """What a rank does in one block of a run, in this order."""
        if step.configuration.weights == "replicated":
            yield from self._block(step, run)
            return
        activities = list(self._block(step, run))
        yield from activities
        yield self._weights(step, run, sum(map(seconds_of, activities)))

    def _weights(self, step: Step, run: BlockRun, block_s: float) -> CollectiveCost:
        """By how much a block's weights are put together later than the block before is done.

        On a CPU gathering takes the cores that compute.
        """
        sharers, axes = step.configuration.weight_group_size, ("dp", "cfg", "ring", "ulysses")
        piece_bytes = run.parameters * step.workload.dtype_bytes / sharers
        gathered = self._over(step, "weights", "all_gather", piece_bytes, axes)
        hidden_s = block_s if step.device.kind == "cuda" else 0.0
        waited_s = max(0.0, gathered.timed.seconds - hidden_s)
        return replace(gathered, timed=Timed(waited_s, gathered.timed.source))

    def _block(self, step: Step, run: BlockRun) -> Iterator[Activity]:
        share, block = step.share, self.computed(step, run)
        yield Computation("blocks", Timed(block.seconds - block.attention_s, block.source))
        pairs = sum(share.pairs(attention) for attention in run.attentions)
        for attention in run.attentions:
            if attention.linear:
                yield from self._state(step, attention)
                continue
            own_s = block.attention_s * share.pairs(attention) / max(pairs, 1.0)
            for tensors in (3,) if self.constants.sends_together else (1, 1, 1):
                yield from self._ulysses(step, attention, tensors)
            yield from self._attention(step, attention, Timed(own_s, block.source))
            yield from self._ulysses(step, attention, 1)

    def computed(self, step: Step, run: BlockRun | None) -> Timed:
        """What a block of a run computes, or what is in no block (None), wherever its rank is.

        Of unlike loads the slowest counts, in attention and in what is beside it, as ranks meet
        before and after each attention.
        """
        how = (run, step.configuration.mode, step.workload.dtype)
        if not step.loads:
            return self._computed_by(step.share, step.device, *how)
        found = [self._computed_by(load.share, load.device, *how) for load in step.loads]
        attention_s = max(one.attention_s for one in found)
        beside_s = max(one.seconds - one.attention_s for one in found)
        source = max((one.source for one in found), key=SOURCES.index)
        return Timed(beside_s + attention_s, source, attention_s)

    def _computed_by(
        self, share: RankShard, device: Device, run: BlockRun | None, mode: Mode, dtype: Dtype
    ) -> Timed:
        key = (share, run.kind if run else None, device.name, dtype, mode)
        if key not in self._computed:
            on = self.times_on(device)
            found = on.block(run, share, dtype, mode) if run else on.outside(share, dtype, mode)
            self._computed[key] = found
        return self._computed[key]

    def scheduler(self, workload: Workload, device: Device) -> Timed:
        """A step of the scheduler, on latents of full size."""
        samples = workload.batch * self.spec.image_tokens(workload)
        guess_s = self.constants.scheduler_step_s
        return self.times_on(device).simple("scheduler_step", samples, guess_s, workload.dtype)

    def _state(self, step: Step, attention: Attention) -> Iterator[Activity]:
        """One sum over ring x ulysses, and a small gathering of the rows at the ranks' edges."""
        if step.configuration.mesh.sequence_parallel == 1:
            return
        sum_bytes = step.share.batch * attention.state_bytes
        yield self._over(step, "ring", "all_reduce", sum_bytes, ("ring", "ulysses"))
        # two rows, of a square picture's width at most
        tokens = step.share.predicted**0.5
        edge_bytes = 2 * step.share.batch * tokens * self.spec.width * step.workload.dtype_bytes
        yield self._over(step, "ring", "all_gather", edge_bytes, ("ring", "ulysses"))

    def _ulysses(self, step: Step, attention: Attention, tensors: int) -> Iterator[Activity]:
        """The all_to_all of so many of q, k, v and the output, with its packing."""
        if step.configuration.mesh.ulysses == 1:
            return
        tokens = sum(step.share.tokens[segment] for segment in attention.segments)
        numbers = step.share.batch * tokens * attention.heads * attention.head_dim
        one_bytes = numbers * step.workload.dtype_bytes
        groups = step.place.groups(("ulysses",))
        operation = self._exchange("all_to_all", groups)
        if operation == "all_to_all":
            pushed = self.constants.pushes and self.topology.can_push(groups)
            passes = self.constants.push_passes if pushed else self.constants.exchange_passes
            packing_s = self._passes_s(step, passes * one_bytes * tensors / 4)
            yield Computation("ulysses", Timed(packing_s, "computed"))
        yield self._over(step, "ulysses", operation, tensors * one_bytes, ("ulysses",))

    def _attention(self, step: Step, attention: Attention, own: Timed) -> Iterator[Activity]:
        """Attention to all keys: those of a ring are gathered first, or passed on meanwhile.

        On a CPU sending takes the cores that compute, so nothing is hidden, nor on GPUs whose
        attention and transfers wait for each other.
        """
        ring = step.configuration.mesh.ring
        if ring == 1:
            yield Computation("attention", own)
            return
        tokens = sum(step.share.queries[segment] for segment in attention.segments)
        heads = step.share.heads(attention)
        numbers = step.share.batch * tokens * heads * attention.head_dim
        sent_bytes = 2 * numbers * step.workload.dtype_bytes
        if self._ring_variant(step.configuration, step.place) == "gather":
            operation = self._exchange("all_gather", step.place.groups(("ring",)))
            yield self._over(step, "ring", operation, sent_bytes, ("ring",))
            yield Computation("attention", own)
            return
        merge_s = self._passes_s(step, self.constants.merge_passes * numbers * 4)
        fresh = 1.0
        if step.configuration.pipefusion and self.constants.sends_fresh_keys:
            keys = sum(step.share.keys[segment] for segment in attention.segments)
            fresh = min(1.0, ring * tokens / keys)
        yield RingAttention(
            blocks=ring,
            attend=Timed(fresh * own.seconds / ring, own.source),
            stale=Timed((1 - fresh) * own.seconds, own.source),
            # before and after the patch; the first and the last one have it on one side alone
            stale_pieces=2 * (1 - fresh),
            merge=Timed(merge_s, "computed"),
            sent=self._over(step, "ring", "send_recv", sent_bytes, ("ring",)),
            is_hidden=self._attends_meanwhile(step.device),
        )

    def _attends_meanwhile(self, device: Device) -> bool:
        if device.kind == "cpu":
            return False
        return self.constants.attends_beside_transfers or not counts_on_all(device.name)

    def _exchange(self, collective: Operation, groups: Groups) -> Operation:
        """What the native runtime has in a collective's place: writes into peers' memory, which
        are measured where it can make them.
        """
        by_writes = PEER_OPERATIONS[collective]
        if not self.constants.pushes:
            return collective
        return by_writes if self.topology.is_measured(by_writes, groups) else collective

    def _passes_s(self, step: Step, moved_bytes: float) -> float:
        """Seconds to read and write so many bytes of a device's memory, by who has most to move;
        of unlike loads each moves as much less as it has fewer tokens.
        """
        rates = [step.device.memory_bytes_per_s]
        if step.loads:
            most = step.share.rows
            rates = [one.device.memory_bytes_per_s * most / one.share.rows for one in step.loads]
        return moved_bytes / (min(rates) * self.constants.bandwidth_efficiency)

    def gather(self, step: Step) -> Iterator[CollectiveCost]:
        """The output's tokens are put together again over ring x ulysses."""
        if step.configuration.mesh.sequence_parallel > 1:
            piece_bytes = self.predicted_bytes(step, step.share.tokens["image"])
            yield self._over(step, "gather", "all_gather", piece_bytes, ("ring", "ulysses"))

    def cfg(self, step: Step) -> Iterator[CollectiveCost]:
        """The samples' outputs are exchanged over dp x cfg."""
        if step.configuration.mesh.batch_parallel > 1:
            whole_bytes = self.predicted_bytes(step, step.share.predicted)
            yield self._over(step, "cfg", "all_gather", whole_bytes, ("dp", "cfg"))

    def predicted_bytes(self, step: Step, image_tokens: int) -> int:
        """What the transformer puts out for so many image tokens of this rank's samples."""
        per_token = step.share.batch * values_per_token(self.spec)
        return image_tokens * per_token * step.workload.dtype_bytes

    def launch_waits_s(self, step: Step, host_s: float, device_s: float) -> float:
        """By how much launching work from the host outlasts what the device does of it.

        Measured blocks have waited for their launches already, and in a graph nothing waits.
        """
        return overlapped_s(host_s, device_s, self.launch_exponent(step)) - device_s

    def launch_exponent(self, step: Step) -> float:
        """How well launching and working off overlap; infinite where one hides the other."""
        mode = step.configuration.mode
        if "graph" in mode or self.times_on(step.device).has_blocks(step.workload.dtype, mode):
            return math.inf
        return self.constants.launch_exponent

    def host_s(self, step: Step, counts: Sequence[int], gathers: int) -> float:
        """Host time to launch so many blocks of each run, what is around them, and gatherings of
        the output: every kernel, or a graph as one.
        """
        c, mode, dtype = self.constants, step.configuration.mode, step.workload.dtype
        mesh = step.configuration.mesh
        if "graph" in mode:
            return c.replay_launches * c.launch_s
        key = (mode, dtype, step.device.name, *counts, gathers, mesh.ring, mesh.ulysses > 1)
        if key not in self._host_s:
            self._host_s[key] = self._launched_s(step, counts, gathers)
        return self._host_s[key]

    def _launched_s(self, step: Step, counts: Sequence[int], gathers: int) -> float:
        c, mode, dtype = self.constants, step.configuration.mode, step.workload.dtype
        times, mode_counts = self.times_on(step.device), c.modes[mode]
        host_s = times.launch_s("outside", c.outside_kernels, dtype, mode)
        host_s += gathers * mode_counts.gather_launches * c.launch_s
        for run, count in zip(self.spec.blocks, counts, strict=True):
            attentions, kernels = (
                len(run.attentions),
                mode_counts.operation_launches * run.operations,
            )
            block_s = times.launch_s(run.kind, kernels, dtype, mode)
            exchange_s = _exchange_launches(mode_counts, step.configuration.mesh) * c.launch_s
            host_s += count * (block_s + exchange_s * attentions)
        return host_s

    def _over(
        self,
        step: Step,
        part: str,
        operation: Operation,
        rank_bytes: float,
        axes: tuple[str, ...],
    ) -> CollectiveCost:
        """An exchange along axes."""
        groups = step.place.groups(axes)
        timed = step.place.timed
        key = (operation, rank_bytes, axes)
        if key not in timed:
            found = self.topology.collective_s(operation, rank_bytes, groups)
            start_s = self.constants.exchange_start_s if found.seconds > 0 else 0.0
            timed[key] = Timed(found.seconds + start_s, found.source)
        return CollectiveCost(part, operation, rank_bytes, groups, timed[key])

    def _book(self, ledger: CostBreakdown, activity: Activity) -> None:
        """Books what an activity takes of the rank's time."""
        if isinstance(activity, RingAttention):
            sent, passes = activity.sent, activity.blocks - 1
            ledger.add("attention", activity.attend, activity.blocks)
            ledger.add("attention", activity.stale)
            ledger.add("ring", activity.merge, activity.merges)
            ledger.add("ring", Timed(activity.first_sent_s, sent.timed.source))
            ledger.add("ring", Timed(activity.later_sent_s, sent.timed.source), passes - 1)
            self._book_bytes(ledger, sent, passes)
            return
        ledger.add(activity.part, activity.timed)
        if isinstance(activity, CollectiveCost):
            self._book_bytes(ledger, activity, 1)

    def _book_bytes(self, ledger: CostBreakdown, exchange: CollectiveCost, times: int) -> None:
        moved = self.topology.link_bytes(exchange.operation, exchange.rank_bytes, exchange.groups)
        for kind, count in moved.items():
            ledger.link_bytes[kind] += count * times


def _exchange_launches(mode: ModeConstants, mesh: Mesh) -> float:
    """Kernels that a mesh adds to each self-attention."""
    ring = mode.ring_step_launches * (mesh.ring - 1)
    return ring + (mode.exchange_launches if mesh.ulysses > 1 else 0.0)
