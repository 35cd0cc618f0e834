"""Ulysses' exchanges by writes straight into the memory of peers."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch

from ditplan.runtime.groups import AxisGroup, Work
from ditplan.runtime.sequence.ulysses import parts_of
from ditplan.runtime.transport.mailbox import Box, Mailbox


class PeerExchange:
    """Trades tokens for heads by pushing them to where they are wanted, each way in one kernel.

    Mailboxes are made when a shape is first seen, so not while a graph is captured, and are shared
    by all layers: a rank writes to one again only after it has met all others since they read it.
    """

    def __init__(
        self, group: AxisGroup, device: torch.device, head_shares: Sequence[int] | None = None
    ) -> None:
        """`head_shares` are in what proportion the group's ranks share heads, None for equal."""
        self._group, self._head_shares = group, head_shares
        self._device = device
        self._mailboxes: dict[tuple[Any, ...], Mailbox] = {}

    def gather_tokens(
        self,
        tensors: Sequence[torch.Tensor],
        tokens: Sequence[int],
        meanwhile: Work | None = None,
    ) -> list[torch.Tensor]:
        """(B, H, S here, D) each -> (B, H here, S, D) each, views of this rank's inbox."""
        count, first = len(tensors), tensors[0]
        batch, heads, mine, width = first.shape
        parts = parts_of(self._group, tokens, heads, self._head_shares)
        total, before = sum(parts.tokens), sum(parts.tokens[: parts.me])
        key = ("gather", count, first.shape, first.dtype, parts.tokens)
        if key not in self._mailboxes:
            whole = batch * total
            boxes = [
                Box(0, mine, start, share, before * share, whole * share, total * share, share)
                for start, share in zip(parts.first_heads, parts.heads, strict=True)
            ]
            numbers = count * whole * max(parts.heads) * width
            self._make(key, numbers, first.dtype, boxes)
        mailbox = self._mailboxes[key]
        mailbox.push(tensors, meanwhile)
        mailbox.meet()
        inbox = mailbox.read((count, batch, total, parts.heads[parts.me], width))
        return [tensor.transpose(1, 2) for tensor in inbox]

    def scatter_tokens(
        self,
        tensor: torch.Tensor,
        heads: int,
        tokens: Sequence[int],
        meanwhile: Work | None = None,
    ) -> torch.Tensor:
        """(B, H here, S, D) -> (B, H, S here, D); with `meanwhile` a view of this rank's inbox."""
        batch, here, _, width = tensor.shape
        parts = parts_of(self._group, tokens, heads, self._head_shares)
        first_head = parts.first_heads[parts.me]
        key = ("scatter", tensor.shape, tensor.dtype, heads, parts.tokens)
        if key not in self._mailboxes:
            boxes = [
                Box(start, count, 0, here, first_head, 0, count * heads, heads)
                for start, count in zip(_starts(parts.tokens), parts.tokens, strict=True)
            ]
            self._make(key, batch * max(parts.tokens) * heads * width, tensor.dtype, boxes)
        mailbox = self._mailboxes[key]
        mailbox.push((tensor,), meanwhile)
        mailbox.meet()
        here_again = mailbox.read((batch, parts.tokens[parts.me], heads, width)).transpose(1, 2)
        # a copy, where the result may be kept until the next attention writes to the inbox
        return here_again.clone() if meanwhile is None else here_again

    def gather_kv(
        self, key: torch.Tensor, value: torch.Tensor, tokens: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of all ranks in their order, (B, H, S here, D) -> (B, H, S, D) each."""
        batch, heads, mine, width = key.shape
        total, before = sum(tokens), sum(tokens[: self._group.index])
        name = ("keys", key.shape, key.dtype, tuple(tokens))
        if name not in self._mailboxes:
            box = Box(
                0, mine, 0, heads, before * heads, batch * total * heads, total * heads, heads
            )
            numbers = 2 * batch * total * heads * width
            self._make(name, numbers, key.dtype, [box] * self._group.size)
        mailbox = self._mailboxes[name]
        # nothing else makes sure that all have read what lies there
        mailbox.meet()
        mailbox.push((key, value))
        mailbox.meet()
        keys, values = mailbox.read((2, batch, total, heads, width)).transpose(2, 3)
        return keys, values

    def _make(
        self,
        key: tuple[Any, ...],
        numbers: int,
        dtype: torch.dtype,
        boxes: Sequence[Box],
    ) -> None:
        self._mailboxes[key] = Mailbox(self._group, self._device, numbers, dtype, boxes)


def _starts(sizes: Sequence[int]) -> list[int]:
    return list(accumulate(sizes, initial=0))[:-1]
