"""Ring attention: keys and values get to all ranks of the ring while queries stay.

Source: Liu et al., Ring Attention (arXiv 2310.01889). Blocks of any sizes: every rank knows all of
them, so that no shape is ever exchanged.
"""

from collections.abc import Callable, Iterable, Sequence

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


def ring_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    group: AxisGroup,
    key_sizes: Sequence[int],
    attend: AttendWithLse,
    room: RingBuffers,
    beside: Iterable[KeysAndValues] = (),
    kept: dict[int, torch.Tensor] | None = None,
    *,
    bidirectional: bool = False,
) -> torch.Tensor:
    """Attention of this rank's queries over the keys of all ranks, passed on from rank to rank.

    (B, H, S of this rank, D) -> (B, H, S of this rank, D); `key_sizes` gives S of each rank of the
    group. The next block is in flight while `attend` is at work on this one, and the first of them
    also while it is at work on what is `beside`: further keys and values, which this rank has.
    `kept` is given the keys and values (2, B, H, S, D) of each rank, by its index. If it is
    `bidirectional`, a block comes from each side at once, in half as many steps, as queries and
    outputs do in TokenRing (arXiv 2412.20501).
    """
    ranks = group.size
    batch, heads, own, width = key.shape
    block = room.of(0, (2, batch, heads, own, width), key)
    torch.stack((key, value), out=block)
    here, last = {group.index: block}, dict.fromkeys((1, -1), block)
    merged = PartialAttention()
    for step, ways in enumerate(_ways(ranks, bidirectional), start=1):
        if kept is not None:
            kept.update(here)
        arriving: dict[int, torch.Tensor] = {}
        operations: list[dist.P2POp] = []
        for way in ways:
            owner = (group.index - way * step) % ranks
            # one that was attended to is written to again, unless all are wanted at the end
            slot = way * (step if kept is not None else 1 + step % 2)
            into = room.of(slot, (2, batch, heads, key_sizes[owner], width), key)
            operations += _pass_on(last[way], into, group, way)
            arriving[owner] = last[way] = into
        transfers = dist.batch_isend_irecv(operations) if operations else []
        if step == 1:
            for keys, values in beside:
                merged.add(*attend(query, keys, values))
        for keys, values in here.values():
            merged.add(*attend(query, keys, values))
        for transfer in transfers:
            transfer.wait()
        here = arriving
    return merged.result(query.dtype)


def _ways(ranks: int, bidirectional: bool) -> list[tuple[int, ...]]:
    """Which ways blocks go in each step, 1 being the next rank's; none in the last one."""
    if not bidirectional:
        return [*[(1,)] * (ranks - 1), ()]
    others = ranks - 1
    return [*[(1, -1)] * (others // 2), *[(1,)] * (others % 2), ()]


def _pass_on(
    block: torch.Tensor, arriving: torch.Tensor, group: AxisGroup, way: int
) -> list[dist.P2POp]:
    """Sending this block to the rank on one side while that on the other side sends its own."""
    following = group.ranks[(group.index + way) % group.size]
    preceding = group.ranks[(group.index - way) % group.size]
    return [
        dist.P2POp(dist.isend, block, following, group.group),
        dist.P2POp(dist.irecv, arriving, preceding, group.group),
    ]
