"""The exchange of tokens for heads between the ranks of a group, by collectives of any backend.

`peer_memory.py` has the one for GPUs that can write into each other's memory.
"""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

import torch
import torch.distributed as dist

from ditplan.profiles.splits import split_sizes
from ditplan.runtime.groups import AxisGroup, Work


class Exchange(Protocol):
    """Trades tokens for heads within a group and back; `tokens` gives S of each rank.

    `meanwhile` is called once, after the tensors were sent off and before others are waited for.
    """

    def gather_tokens(
        self,
        tensors: Sequence[torch.Tensor],
        tokens: Sequence[int],
        meanwhile: Work | None = None,
    ) -> list[torch.Tensor]:
        """(B, H, S here, D) each -> (B, H here, S, D) each."""

    def scatter_tokens(
        self,
        tensor: torch.Tensor,
        heads: int,
        tokens: Sequence[int],
        meanwhile: Work | None = None,
    ) -> torch.Tensor:
        """The way back, `heads` in all: (B, H here, S, D) -> (B, H, S here, D).

        With `meanwhile` the result is valid until the next exchange.
        """


class CollectiveExchange:
    """By one all_to_all each way.

    Tokens lead in what is sent, so that the pieces that arrive stand one after another as one
    sequence and need no unpacking.
    """

    def __init__(self, group: AxisGroup, head_shares: Sequence[int] | None = None) -> None:
        """`head_shares` are in what proportion the group's ranks share heads, None for equal."""
        self._group, self._head_shares = group, head_shares
        # tokens and messages go by the process group's own numbering of its ranks
        self._me = group.order.index(group.index)

    def gather_tokens(
        self,
        tensors: Sequence[torch.Tensor],
        tokens: Sequence[int],
        meanwhile: Work | None = None,
    ) -> list[torch.Tensor]:
        """One all_to_all for all `tensors`: (B, H, S here, D) each -> (B, H here, S, D) each."""
        batch, heads_in_all, mine, width = tensors[0].shape
        count = len(tensors)
        heads, starts = heads_by_rank(heads_in_all, self._group, self._head_shares)
        rows = [tokens[i] for i in self._group.order]
        outgoing = tensors[0].new_empty(mine * count * batch * heads_in_all * width)
        sizes = [mine * count * batch * h * width for h in heads]
        pieces = zip(outgoing.split(sizes), starts, heads, strict=True)
        for piece, first, number in pieces:
            packed = piece.view(mine, count, batch, number, width)
            for i, tensor in enumerate(tensors):
                packed[:, i].copy_(tensor[:, first : first + number].permute(2, 0, 1, 3))
        here = heads[self._me]
        incoming = outgoing.new_empty(sum(rows), count, batch, here, width)
        received = [size * count * batch * here * width for size in rows]
        self._trade(incoming.view(-1), outgoing, received, sizes, meanwhile)
        return [incoming[:, i].permute(1, 2, 0, 3) for i in range(count)]

    def scatter_tokens(
        self,
        tensor: torch.Tensor,
        heads: int,
        tokens: Sequence[int],
        meanwhile: Work | None = None,
    ) -> torch.Tensor:
        """One all_to_all: (B, H here, S, D) -> (B, H, S here, D)."""
        batch, here, _, width = tensor.shape
        shares, _ = heads_by_rank(heads, self._group, self._head_shares)
        rows = [tokens[i] for i in self._group.order]
        mine = rows[self._me]
        outgoing = tensor.permute(2, 0, 1, 3).contiguous()
        sizes = [math.prod((mine, batch, share, width)) for share in shares]
        incoming = outgoing.new_empty(sum(sizes))
        sent = [size * batch * here * width for size in rows]
        self._trade(incoming, outgoing.view(-1), sizes, sent, meanwhile)
        pieces = {
            place: piece.view(mine, batch, share, width).transpose(0, 1)
            for place, piece, share in zip(
                self._group.order, incoming.split(sizes), shares, strict=True
            )
        }
        in_order = [pieces[place] for place in range(self._group.size)]
        return torch.cat(in_order, dim=2).transpose(1, 2)

    def _trade(
        self,
        incoming: torch.Tensor,
        outgoing: torch.Tensor,
        received: list[int],
        sent: list[int],
        meanwhile: Work | None,
    ) -> None:
        travelling = dist.all_to_all_single(
            incoming,
            outgoing,
            received,
            sent,
            group=self._group.group,
            async_op=meanwhile is not None,
        )
        if meanwhile is not None and travelling is not None:
            meanwhile()
            travelling.wait()


def heads_by_rank(
    heads: int, group: AxisGroup, shares: Sequence[int] | None
) -> tuple[list[int], list[int]]:
    """How many heads each rank of the process group gets, and the first of them.

    They go by mesh coordinate, as members of a ring must have the same ones.
    """
    sizes = split_sizes(heads, group.size, shares)
    starts = list(accumulate(sizes, initial=0))
    return [sizes[place] for place in group.order], [starts[place] for place in group.order]
