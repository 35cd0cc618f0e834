"""The exchange of tokens for heads between the ranks of a group, by collectives of any backend.

`peer_ulysses.py` has the one for GPUs that can write into each other's memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Parts:
    """What each rank of a group has: its tokens before an exchange, its heads after it.

    All by the process group's own numbering of its ranks, by which messages go; `me` is this rank.
    """

    me: int
    tokens: tuple[int, ...]
    heads: tuple[int, ...]
    first_heads: tuple[int, ...]


def parts_of(
    group: AxisGroup, tokens: Sequence[int], heads: int, head_shares: Sequence[int] | None
) -> Parts:
    """Shares out `heads` in the proportion of `head_shares`, None for equal; `tokens` are given.

    Both go by mesh coordinate, as members of a ring must have the same heads.
    """
    sizes = split_sizes(heads, group.size, head_shares)
    starts = list(accumulate(sizes, initial=0))
    order = group.order
    return Parts(
        me=order.index(group.index),
        tokens=tuple(tokens[place] for place in order),
        heads=tuple(sizes[place] for place in order),
        first_heads=tuple(starts[place] for place in order),
    )


class CollectiveExchange:
    """By one all_to_all each way.

    Tokens lead in what is sent, so that the pieces that arrive stand one after another as one
    sequence and need no unpacking.
    """

    def __init__(self, group: AxisGroup, head_shares: Sequence[int] | None = None) -> None:
        """`head_shares` are in what proportion the group's ranks share heads, None for equal."""
        self._group, self._head_shares = group, head_shares

    def gather_tokens(
        self,
        tensors: Sequence[torch.Tensor],
        tokens: Sequence[int],
        meanwhile: Work | None = None,
    ) -> list[torch.Tensor]:
        """One all_to_all for all `tensors`: (B, H, S here, D) each -> (B, H here, S, D) each."""
        batch, heads_in_all, mine, width = tensors[0].shape
        count = len(tensors)
        parts = parts_of(self._group, tokens, heads_in_all, self._head_shares)
        outgoing = tensors[0].new_empty(mine * count * batch * heads_in_all * width)
        sizes = [mine * count * batch * heads * width for heads in parts.heads]
        pieces = zip(outgoing.split(sizes), parts.first_heads, parts.heads, strict=True)
        for piece, first, number in pieces:
            packed = piece.view(mine, count, batch, number, width)
            for i, tensor in enumerate(tensors):
                packed[:, i].copy_(tensor[:, first : first + number].permute(2, 0, 1, 3))
        here = parts.heads[parts.me]
        incoming = outgoing.new_empty(sum(parts.tokens), count, batch, here, width)
        received = [size * count * batch * here * width for size in parts.tokens]
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
        parts = parts_of(self._group, tokens, heads, self._head_shares)
        mine = parts.tokens[parts.me]
        outgoing = tensor.permute(2, 0, 1, 3).contiguous()
        sizes = [mine * batch * share * width for share in parts.heads]
        incoming = outgoing.new_empty(sum(sizes))
        sent = [size * batch * here * width for size in parts.tokens]
        self._trade(incoming, outgoing.view(-1), sizes, sent, meanwhile)
        pieces = {
            place: piece.view(mine, batch, share, width).transpose(0, 1)
            for place, piece, share in zip(
                self._group.order, incoming.split(sizes), parts.heads, strict=True
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
