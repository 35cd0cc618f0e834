"""Ring attention: keys and values get to all ranks of the ring while queries stay.

Source: Liu et al., Ring Attention (arXiv 2310.01889). Blocks of any sizes: every rank knows all of
them, so that no shape is ever exchanged.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
import torch.distributed as dist

from ditplan.runtime.groups import AxisGroup
from ditplan.runtime.sequence.kernels import PartialAttention

AttendWithLse = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]
]

KeysAndValues = tuple[torch.Tensor, torch.Tensor]


class RingBuffers:
    """Memory for what is sent and received, the same for all attentions of one shape.

    What is new each time is held until a graph's capture ends, as transports use it on a stream of
    their own: as much as all blocks of a model send.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[object, ...], torch.Tensor] = {}

    def of(self, slot: int, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        """The slot's memory for a shape; what was there before must not be wanted any more."""
        key = (slot, shape, like.dtype, like.device)
        if key not in self._kept:
            self._kept[key] = like.new_empty(shape)
        return self._kept[key]

    def clear(self) -> None:
        """Gives the memory back."""
        self._kept.clear()


class RingTransfer:
    """Blocks of keys and values on their way around a ring, for one attention: in each step a rank
    passes on what came last, and gets what the rank before it passes on.

    A block's memory is written to again two steps later, unless the transfer `keeps_all`.
    """

    directions: ClassVar[tuple[int, ...]] = (1,)
    """Which ways blocks go at once: 1 is to the next rank, -1 to the one before."""

    def __init__(
        self,
        group: AxisGroup,
        buffers: RingBuffers,
        key_sizes: Sequence[int],
        *,
        keeps_all: bool = False,
    ) -> None:
        """`key_sizes` gives S of each rank of the group."""
        self._group, self._buffers, self._key_sizes = group, buffers, key_sizes
        self._keeps_all = keeps_all
        self._step = 0
        self._last: dict[int, torch.Tensor] = {}
        self._arriving: dict[int, torch.Tensor] = {}
        self._works: list[dist.Work] = []
        self._blocks: dict[int, torch.Tensor] = {}

    def begin(self, key: torch.Tensor, value: torch.Tensor) -> KeysAndValues:
        """Takes this rank's own block, (B, H, S, D) each, and gives it as it will be passed on."""
        block = self._buffers.of(0, (2, *key.shape), key)
        torch.stack((key, value), out=block)
        self._last = dict.fromkeys(self.directions, block)
        self._blocks[self._group.index] = block
        return block[0], block[1]

    def send_recv(self) -> None:
        """Starts to pass on what came last; nothing is, once all ranks' blocks have come."""
        self._step += 1
        missing = self._group.size - len(self._blocks)
        operations: list[dist.P2POp] = []
        for way in self.directions[:missing]:
            owner = (self._group.index - way * self._step) % self._group.size
            slot = way * (self._step if self._keeps_all else 1 + self._step % 2)
            two, batch, heads, _, width = self._last[way].shape
            shape = (two, batch, heads, self._key_sizes[owner], width)
            into = self._buffers.of(slot, shape, self._last[way])
            operations += _pass_on(self._last[way], into, self._group, way)
            self._arriving[owner] = self._last[way] = into
        self._works = dist.batch_isend_irecv(operations) if operations else []

    def wait(self) -> list[KeysAndValues]:
        """The blocks that came, one from each direction, once they are there."""
        for work in self._works:
            work.wait()
        arrived, self._arriving = self._arriving, {}
        self._blocks |= arrived
        return [(block[0], block[1]) for block in arrived.values()]

    def gathered(self) -> KeysAndValues:
        """The keys and values of all ranks in their order, (B, H, S of all, D) each, at the end.

        Raises:
            ValueError: not all are here, or not all were kept.
        """
        if not self._keeps_all or len(self._blocks) < self._group.size:
            raise ValueError("blocks that were written to again, or never came, can't be gathered")
        keys, values = torch.cat([self._blocks[rank] for rank in range(self._group.size)], 3)
        return keys, values


class BidirectionalTransfer(RingTransfer):
    """A block comes from each side at once, in half as many steps, as queries and outputs do in
    TokenRing (arXiv 2412.20501).
    """

    directions = (1, -1)


def ring_attention(
    query: torch.Tensor,
    blocks: Sequence[KeysAndValues],
    transfer: RingTransfer,
    attend: AttendWithLse,
) -> torch.Tensor:
    """Attention of this rank's queries over the keys of all ranks, passed on from rank to rank.

    (B, H, S of this rank, D) -> (B, H, S of this rank, D). `blocks` are those to begin with: this
    rank's own, by which the transfer was begun, and what else it has. The next ones are in flight
    while `attend` is at work on these.
    """
    merged = PartialAttention()
    while blocks:
        transfer.send_recv()
        for keys, values in blocks:
            merged.add(*attend(query, keys, values))
        blocks = transfer.wait()
    return merged.result(query.dtype)


def _pass_on(
    block: torch.Tensor, arriving: torch.Tensor, group: AxisGroup, way: int
) -> list[dist.P2POp]:
    """Sending this block to the rank on one side while that on the other side sends its own."""
    following = group.ranks[(group.index + way) % group.size]
    preceding = group.ranks[(group.index - way) % group.size]
    return [
        # with its send posted first, gloo takes one way between two ranks after the other
        dist.P2POp(dist.irecv, arriving, preceding, group.group),
        dist.P2POp(dist.isend, block, following, group.group),
    ]
