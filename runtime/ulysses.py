"""Ulysses: trade a share of the tokens with all heads for all tokens with a share of the heads.

Source: Jacobs et al., DeepSpeed-Ulysses (arXiv 2309.14509). Any numbers of tokens and heads: what
doesn't divide becomes split sizes of the all_to_all, not padding.
"""

import math
from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
import torch.distributed as dist

from ditplan.profiles.splits import split_sizes
from ditplan.runtime.groups import AxisGroup

LocalAttention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def ulysses_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    group: AxisGroup,
    token_sizes: Sequence[int],
    attend: LocalAttention,
) -> torch.Tensor:
    """Attention over all tokens of the group.

    `attend` runs on (B, H of this rank, S of the group, D); the result is this rank's tokens again.
    (B, H, S of this rank, D) -> (B, H, S of this rank, D). `token_sizes` gives S of each rank of
    the group.
    """
    heads = split_sizes(query.shape[1], group.size)
    shared = gather_tokens((query, key, value), group, heads, token_sizes)
    return scatter_tokens(attend(*shared), group, heads, token_sizes)


def gather_tokens(
    tensors: Sequence[torch.Tensor], group: AxisGroup, heads: Sequence[int], tokens: Sequence[int]
) -> list[torch.Tensor]:
    """One all_to_all for all `tensors`: (B, H, S here, D) each -> (B, H here, S, D) each.

    `heads` and `tokens` say how many of them each rank of the group has or gets.
    """
    batch, _, _, width = tensors[0].shape
    count = len(tensors)
    sent = [
        [tensor[:, start : start + size] for tensor in tensors]
        for start, size in zip(_starts(heads), heads, strict=True)
    ]
    shapes = [(count, batch, heads[group.index], size, width) for size in tokens]
    pieces = _exchange(sent, shapes, group)
    return [torch.cat([piece[i] for piece in pieces], dim=2) for i in range(count)]


def scatter_tokens(
    tensor: torch.Tensor, group: AxisGroup, heads: Sequence[int], tokens: Sequence[int]
) -> torch.Tensor:
    """The way back: (B, H here, S, D) -> (B, H, S here, D)."""
    batch, _, _, width = tensor.shape
    sent = [
        [tensor[:, :, start : start + size]]
        for start, size in zip(_starts(tokens), tokens, strict=True)
    ]
    shapes = [(batch, size, tokens[group.index], width) for size in heads]
    return torch.cat(_exchange(sent, shapes, group), dim=1)


def _starts(sizes: Sequence[int]) -> list[int]:
    return list(accumulate(sizes, initial=0))[:-1]


def _exchange(
    sent: list[list[torch.Tensor]], shapes: Sequence[tuple[int, ...]], group: AxisGroup
) -> list[torch.Tensor]:
    """In one all_to_all, sends `sent[i]` to rank i of the group for a tensor of `shapes[i]`."""
    # torch numbers a process group by ascending global rank, the axis by mesh coordinate
    order = group.order
    pieces = [piece for i in order for piece in sent[i]]
    outgoing = _packed(pieces)
    send_sizes = [sum(piece.numel() for piece in sent[i]) for i in order]
    receive_sizes = [math.prod(shapes[i]) for i in order]
    incoming = outgoing.new_empty(sum(receive_sizes))
    dist.all_to_all_single(incoming, outgoing, receive_sizes, send_sizes, group=group.group)
    received = dict(zip(order, incoming.split(receive_sizes), strict=True))
    return [received[i].view(shape) for i, shape in enumerate(shapes)]


def _packed(pieces: list[torch.Tensor]) -> torch.Tensor:
    """All pieces one after another in one flat buffer, each copied once."""
    buffer = pieces[0].new_empty(sum(piece.numel() for piece in pieces))
    start = 0
    for piece in pieces:
        buffer[start : start + piece.numel()].view(piece.shape).copy_(piece)
        start += piece.numel()
    return buffer
