"""What a rank does in a call of the transformer, in order: one list, which the price, its lower
bounds and the timeline read.
"""

from collections.abc import Iterator

from ditplan.planner.constants import counts_on_all
from ditplan.planner.cost.activities import (
    Activity,
    CollectiveCost,
    Computation,
    RingAttention,
    seconds_of,
)
from ditplan.planner.cost.computing import Computing
from ditplan.planner.cost.roofline import Timed
from ditplan.planner.cost.share import values_per_token
from ditplan.planner.cost.step import Place, Step
from ditplan.planner.network.groups import Groups
from ditplan.planner.network.topology import Topology
from ditplan.profiles.cluster import PEER_OPERATIONS, Device, Operation
from ditplan.profiles.configuration import RingVariant
from ditplan.profiles.cost_constants import CostConstants
from ditplan.profiles.family import family_of
from ditplan.profiles.model import Attention, BlockRun, ModelSpec


class RankActivities:
    """Lists what a rank does: blocks with their exchanges, and what is around them."""

    def __init__(
        self,
        topology: Topology,
        spec: ModelSpec,
        computing: Computing,
        constants: CostConstants,
    ) -> None:
        self._topology, self._spec = topology, spec
        self._computing, self._constants = computing, constants

    def of_block(self, step: Step, run: BlockRun) -> Iterator[Activity]:
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
        return gathered._replace(timed=Timed(waited_s, gathered.timed.source))

    def _block(self, step: Step, run: BlockRun) -> Iterator[Activity]:
        share, block = step.share, self._computing.computed(step, run)
        yield Computation("blocks", Timed(block.seconds - block.attention_s, block.source))
        pairs_of = [share.pairs(attention) for attention in run.attentions]
        pairs = sum(pairs_of)
        for attention, own in zip(run.attentions, pairs_of, strict=True):
            if attention.linear:
                yield from self._state(step, attention)
                continue
            attention_s = block.attention_s * own / max(pairs, 1.0)
            for tensors in (3,) if self._constants.sends_together else (1, 1, 1):
                yield from self._ulysses(step, attention, tensors)
            yield from self._attention(step, attention, Timed(attention_s, block.source))
            yield from self._ulysses(step, attention, 1)

    def _state(self, step: Step, attention: Attention) -> Iterator[Activity]:
        """One sum over ring x ulysses, and a small gathering of the rows at the ranks' edges."""
        if step.configuration.mesh.sequence_parallel == 1:
            return
        sum_bytes = step.share.batch * attention.state_bytes
        yield self._over(step, "ring", "all_reduce", sum_bytes, ("ring", "ulysses"))
        # two rows, of a square picture's width at most
        tokens = step.share.predicted**0.5
        edge_bytes = 2 * step.share.batch * tokens * self._spec.width * step.workload.dtype_bytes
        yield self._over(step, "ring", "all_gather", edge_bytes, ("ring", "ulysses"))

    def _ulysses(self, step: Step, attention: Attention, tensors: int) -> Iterator[Activity]:
        """The all_to_all of so many of q, k, v and the output, with its packing."""
        if step.configuration.mesh.ulysses == 1:
            return
        tokens = sum(step.share.tokens[segment] for segment in attention.segments)
        numbers = step.share.batch * tokens * attention.heads * attention.head_dim
        tensor_bytes = numbers * step.workload.dtype_bytes
        groups = step.place.groups(("ulysses",))
        operation = self._exchange("all_to_all", groups)
        if operation == "all_to_all":
            pushed = self._constants.pushes and self._topology.can_push(groups)
            passes = self._constants.push_passes if pushed else self._constants.exchange_passes
            packing_s = self._passes_s(step, passes * tensor_bytes * tensors / 4)
            yield Computation("ulysses", Timed(packing_s, "computed"))
        yield self._over(step, "ulysses", operation, tensors * tensor_bytes, ("ulysses",))

    def _attention(self, step: Step, attention: Attention, whole: Timed) -> Iterator[Activity]:
        """Attention to all keys: those of a ring are gathered first, or passed on meanwhile.

        On a CPU sending takes the cores that compute, so nothing is hidden, nor on GPUs whose
        attention and transfers wait for each other.
        """
        ring = step.configuration.mesh.ring
        if ring == 1:
            yield Computation("attention", whole)
            return
        tokens = sum(step.share.queries[segment] for segment in attention.segments)
        heads = step.share.heads(attention)
        numbers = step.share.batch * tokens * heads * attention.head_dim
        sent_bytes = 2 * numbers * step.workload.dtype_bytes
        if self.ring_variant(step.place) == "gather":
            operation = self._exchange("all_gather", step.place.groups(("ring",)))
            yield self._over(step, "ring", operation, sent_bytes, ("ring",))
            yield Computation("attention", whole)
            return
        merge_s = self._passes_s(step, self._constants.merge_passes * numbers * 4)
        fresh = 1.0
        if step.configuration.pipefusion and self._constants.sends_fresh_keys:
            keys = sum(step.share.keys[segment] for segment in attention.segments)
            fresh = min(1.0, ring * tokens / keys)
        yield RingAttention(
            blocks=ring,
            attend=Timed(fresh * whole.seconds / ring, whole.source),
            stale=Timed((1 - fresh) * whole.seconds, whole.source),
            # before and after the patch; the first and the last one have it on one side alone
            stale_pieces=2 * (1 - fresh),
            merge=Timed(merge_s, "computed"),
            sent=self._over(step, "ring", "send_recv", sent_bytes, ("ring",)),
            is_hidden=self._attends_meanwhile(step.device),
        )

    def _attends_meanwhile(self, device: Device) -> bool:
        if device.kind == "cpu":
            return False
        return self._constants.attends_beside_transfers or not counts_on_all(device.name)

    def _exchange(self, collective: Operation, groups: Groups) -> Operation:
        """What the native runtime has in a collective's place: writes into peers' memory, which
        are measured where it can make them.
        """
        by_writes = PEER_OPERATIONS[collective]
        if not self._constants.pushes:
            return collective
        return by_writes if self._topology.is_measured(by_writes, groups) else collective

    def _passes_s(self, step: Step, moved_bytes: float) -> float:
        """Seconds to read and write so many bytes of a device's memory, by who has most to move;
        of unlike loads each moves as much less as it has fewer tokens.
        """
        rates = [step.device.memory_bytes_per_s]
        if step.loads:
            most = step.share.rows
            rates = [load.device.memory_bytes_per_s * most / load.share.rows for load in step.loads]
        return moved_bytes / (min(rates) * self._constants.bandwidth_efficiency)

    def outside(self, step: Step) -> Iterator[Computation]:
        """What is in no block."""
        yield Computation("outside", self._computing.computed(step, None))

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
        per_token = step.share.batch * values_per_token(self._spec)
        return image_tokens * per_token * step.workload.dtype_bytes

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
            estimate = self._topology.collective_s(operation, rank_bytes, groups)
            start_s = self._constants.exchange_start_s if estimate.seconds > 0 else 0.0
            timed[key] = Timed(estimate.seconds + start_s, estimate.source)
        return CollectiveCost(part, operation, rank_bytes, groups, timed[key])

    def ring_variant(self, place: Place) -> RingVariant:
        """Over NVLink keys and values are gathered at once, which costs less than merging by lse.

        Elsewhere they are passed on behind the attention, which hides a slow link on most GPUs.
        Where padded text is masked, they are gathered everywhere. Of the backends that don't push,
        some always gather and the others always pass on.
        """
        if self._constants.gathers_keys:
            return "gather"
        if not self._constants.pushes:
            return "pass"
        mask = family_of(self._spec.transformer_class).text_mask
        if mask and mask.input:
            return "gather"
        return "gather" if self._topology.can_push(place.groups(("ring",))) else "pass"
