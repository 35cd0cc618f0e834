"""Exchanges between GPUs of one host that write straight into each other's memory.

Each tensor is stored once, where and how its reader wants it: no packing, no unpacking, and no
collective's start-up. Source of the technique: PyTorch's symmetric memory.
"""

import math
import platform
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symmetric_memory

from ditplan.profiles.splits import split_sizes
from ditplan.runtime.groups import AxisGroup, RankContext
from ditplan.runtime.inventory import common_link_kind, link_kind
from ditplan.runtime.launch import environment


def can_write_to_peers(group: AxisGroup, context: RankContext) -> bool:
    """Whether all GPUs of a group sit on one host and are linked by NVLink; all its ranks ask.

    Other links are left to collectives: there the link, not the packing, takes the time.
    """
    if context.device.type != "cuda":
        return False
    mine = (platform.node(), link_kind(context))
    found: list[Any] = [None] * group.size
    dist.all_gather_object(found, mine, group=group.group)
    kinds = [kind for _, kind in found]
    one_host = len({host for host, _ in found}) == 1
    return one_host and common_link_kind(kinds, environment()) == "nvlink"


class Mailbox:
    """A piece of memory on each rank of a group that all its ranks write to.

    Making one is collective over the group.
    """

    def __init__(
        self,
        group: AxisGroup,
        device: torch.device,
        numbers: int,
        dtype: torch.dtype,
        boxes: Sequence[Sequence[int]],
    ) -> None:
        """`numbers` and `boxes` (one a rank of the process group, as `push_boxes` reads them)."""
        self._memory = symmetric_memory.empty(numbers, dtype=dtype, device=device)
        self._handle: Any = symmetric_memory.rendezvous(self._memory, group.group.group_name)
        self._inboxes = torch.tensor(self._handle.buffer_ptrs, dtype=torch.int64, device=device)
        self._boxes = torch.tensor(boxes, dtype=torch.int64, device=device)
        self._largest_box = max(box[1] for box in boxes)

    def push(self, tensors: Sequence[torch.Tensor]) -> None:
        """Writes this rank's tensors (B, H, S, D) to all ranks; `meet` before reading."""
        from ditplan.runtime.peer_kernels import COLUMNS, ROWS, push_boxes

        tensors = [t if t.stride(-1) == 1 else t.contiguous() for t in tensors]
        batch, _, _, width = tensors[0].shape
        three = [*tensors, tensors[0], tensors[0]][:3]
        strides = [tensor.stride(dim) for tensor in three for dim in (0, 2, 1)]
        peers = len(self._boxes)
        grid = (-(-self._largest_box // ROWS) * peers, len(tensors) * batch)
        push_boxes[grid](
            *three,
            self._inboxes,
            self._boxes,
            *strides,
            batch,
            peers,
            width=width,
            rows_at_once=ROWS,
            columns_at_once=COLUMNS,
        )

    def meet(self) -> None:
        """Waits on the device until all ranks have got here: what they pushed has arrived."""
        self._handle.barrier()

    def read(self, shape: Sequence[int]) -> torch.Tensor:
        """What lies in this rank's inbox, valid until others push again."""
        return self._memory[: math.prod(shape)].view(*shape)


class PeerExchange:
    """Trades tokens for heads by pushing them to where they are wanted, each way in one kernel.

    Mailboxes are made when a shape is first seen, so not while a graph is captured, and are shared
    by all layers: a rank writes to one again only after it has met all others since they read it.
    """

    def __init__(self, group: AxisGroup, device: torch.device) -> None:
        self._group = group
        self._device = device
        # everything here goes by the process group's own numbering of its ranks
        self._me = group.order.index(group.index)
        self._mailboxes: dict[tuple[Any, ...], Mailbox] = {}

    def gather_tokens(
        self, tensors: Sequence[torch.Tensor], tokens: Sequence[int]
    ) -> list[torch.Tensor]:
        """(B, H, S here, D) each -> (B, H here, S, D) each, views of this rank's inbox."""
        count, first = len(tensors), tensors[0]
        batch, heads, mine, width = first.shape
        rows = [tokens[i] for i in self._group.order]
        shares = split_sizes(heads, self._group.size)
        total, before = sum(rows), sum(rows[: self._me])
        key = ("gather", count, first.shape, first.dtype, tuple(rows))
        if key not in self._mailboxes:
            boxes = [
                (0, mine, start, share, before * share, batch * total * share, total * share, share)
                for start, share in zip(_starts(shares), shares, strict=True)
            ]
            numbers = count * batch * total * max(shares) * width
            self._make(key, numbers, first.dtype, boxes)
        mailbox = self._mailboxes[key]
        mailbox.push(tensors)
        mailbox.meet()
        inbox = mailbox.read((count, batch, total, shares[self._me], width))
        return [tensor.transpose(1, 2) for tensor in inbox]

    def scatter_tokens(
        self, tensor: torch.Tensor, heads: int, tokens: Sequence[int]
    ) -> torch.Tensor:
        """(B, H here, S, D) -> (B, H, S here, D)."""
        batch, here, _, width = tensor.shape
        rows = [tokens[i] for i in self._group.order]
        first_head = sum(split_sizes(heads, self._group.size)[: self._me])
        key = ("scatter", tensor.shape, tensor.dtype, heads, tuple(rows))
        if key not in self._mailboxes:
            boxes = [
                (start, count, 0, here, first_head, 0, count * heads, heads)
                for start, count in zip(_starts(rows), rows, strict=True)
            ]
            self._make(key, batch * max(rows) * heads * width, tensor.dtype, boxes)
        mailbox = self._mailboxes[key]
        mailbox.push((tensor,))
        mailbox.meet()
        # a copy, since the inbox is written to again by the next attention
        return mailbox.read((batch, rows[self._me], heads, width)).clone().transpose(1, 2)

    def gather_keys(
        self, key: torch.Tensor, value: torch.Tensor, tokens: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of all ranks, (B, H, S here, D) -> (B, H, S, D) each."""
        batch, heads, mine, width = key.shape
        rows = [tokens[i] for i in self._group.order]
        total, before = sum(rows), sum(rows[: self._me])
        name = ("keys", key.shape, key.dtype, tuple(rows))
        if name not in self._mailboxes:
            box = (0, mine, 0, heads, before * heads, batch * total * heads, total * heads, heads)
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
        boxes: Sequence[Sequence[int]],
    ) -> None:
        self._mailboxes[key] = Mailbox(self._group, self._device, numbers, dtype, boxes)


def _starts(sizes: Sequence[int]) -> list[int]:
    return list(accumulate(sizes, initial=0))[:-1]
