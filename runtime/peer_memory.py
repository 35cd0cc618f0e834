"""Exchanges between GPUs of one host that write straight into each other's memory.

Each tensor is stored once, where and how its reader wants it: no packing, no unpacking, and no
collective's start-up. Source of the technique: PyTorch's symmetric memory.
"""

import math
import platform
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from ditplan.runtime.copy_engine import Rows, copy_rows
from ditplan.runtime.exchange import Work, heads_by_rank
from ditplan.runtime.groups import AxisGroup, RankContext
from ditplan.runtime.inventory import common_link_kind, link_kind
from ditplan.runtime.launch import environment
from ditplan.runtime.symmetric_memory import allocate


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


class Box(NamedTuple):
    """What one rank gets of tensors (B, H, S, D), and where in its inbox; in units of D."""

    row: int
    rows: int
    head: int
    heads: int
    offset: int
    tensor_stride: int
    batch_stride: int
    row_stride: int


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
        boxes: Sequence[Box],
    ) -> None:
        """Room for so many numbers; `boxes` has one for each rank of the process group."""
        self._memory, self._handle = allocate((numbers,), dtype, device, group.group)
        self._addresses: list[int] = list(self._handle.buffer_ptrs)
        self._inboxes = torch.tensor(self._addresses, dtype=torch.int64, device=device)
        self._boxes = boxes
        self._boxes_there = torch.tensor(boxes, dtype=torch.int64, device=device)
        self._me = group.order.index(group.index)
        self._copies = torch.cuda.Stream(device)

    def push(self, tensors: Sequence[torch.Tensor], meanwhile: Work | None = None) -> None:
        """Writes this rank's tensors (B, H, S, D) to all ranks; `meet` before reading.

        By the copy engines where `meanwhile` keeps the multiprocessors busy.
        """
        # the engines copy rows, in which the heads must stand side by side
        in_rows = all(tensor.stride()[1::2] == (tensor.shape[-1], 1) for tensor in tensors)
        if meanwhile is None or not in_rows:
            self._push_to(range(len(self._boxes)), tensors)
            if meanwhile is not None:
                meanwhile()
            return
        now = torch.cuda.current_stream(self._copies.device)
        self._copies.wait_stream(now)
        for peer, box in enumerate(self._boxes):
            if peer != self._me:
                for number, tensor in enumerate(tensors):
                    self._copy_box(number, tensor, box, self._addresses[peer])
        self._push_to(range(self._me, self._me + 1), tensors)
        meanwhile()
        now.wait_stream(self._copies)

    def _push_to(self, peers: range, tensors: Sequence[torch.Tensor]) -> None:
        from ditplan.runtime.peer_kernels import COLUMNS, ROWS, push_boxes

        tensors = [t if t.stride(-1) == 1 else t.contiguous() for t in tensors]
        batch, _, _, width = tensors[0].shape
        three = [*tensors, tensors[0], tensors[0]][:3]
        strides = [tensor.stride(dim) for tensor in three for dim in (0, 2, 1)]
        largest = max(self._boxes[peer].rows for peer in peers)
        grid = (-(-largest // ROWS) * len(peers), len(tensors) * batch)
        push_boxes[grid](
            *three,
            self._inboxes[peers.start : peers.stop],
            self._boxes_there[peers.start : peers.stop],
            *strides,
            batch,
            len(peers),
            width=width,
            rows_at_once=ROWS,
            columns_at_once=COLUMNS,
        )

    def _copy_box(self, number: int, tensor: torch.Tensor, box: Box, inbox: int) -> None:
        one = tensor.shape[-1] * tensor.element_size()
        batch_stride, head_stride, row_stride, _ = (
            stride * tensor.element_size() for stride in tensor.stride()
        )
        for sample in range(tensor.shape[0]):
            start = sample * batch_stride + box.row * row_stride + box.head * head_stride
            there = box.offset + number * box.tensor_stride + sample * box.batch_stride
            copy_rows(
                Rows(tensor.data_ptr() + start, row_stride),
                Rows(inbox + there * one, box.row_stride * one),
                box.heads * one,
                box.rows,
                self._copies,
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

    def __init__(
        self, group: AxisGroup, device: torch.device, head_shares: Sequence[int] | None = None
    ) -> None:
        """`head_shares` are in what proportion the group's ranks share heads, None for equal."""
        self._group, self._head_shares = group, head_shares
        self._device = device
        # tokens and messages go by the process group's own numbering of its ranks
        self._me = group.order.index(group.index)
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
        rows = [tokens[i] for i in self._group.order]
        shares, starts = heads_by_rank(heads, self._group, self._head_shares)
        total, before = sum(rows), sum(rows[: self._me])
        key = ("gather", count, first.shape, first.dtype, tuple(rows))
        if key not in self._mailboxes:
            whole = batch * total
            boxes = [
                Box(0, mine, start, share, before * share, whole * share, total * share, share)
                for start, share in zip(starts, shares, strict=True)
            ]
            numbers = count * whole * max(shares) * width
            self._make(key, numbers, first.dtype, boxes)
        mailbox = self._mailboxes[key]
        mailbox.push(tensors, meanwhile)
        mailbox.meet()
        inbox = mailbox.read((count, batch, total, shares[self._me], width))
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
        rows = [tokens[i] for i in self._group.order]
        _, first_heads = heads_by_rank(heads, self._group, self._head_shares)
        first_head = first_heads[self._me]
        key = ("scatter", tensor.shape, tensor.dtype, heads, tuple(rows))
        if key not in self._mailboxes:
            boxes = [
                Box(start, count, 0, here, first_head, 0, count * heads, heads)
                for start, count in zip(_starts(rows), rows, strict=True)
            ]
            self._make(key, batch * max(rows) * heads * width, tensor.dtype, boxes)
        mailbox = self._mailboxes[key]
        mailbox.push((tensor,), meanwhile)
        mailbox.meet()
        here_again = mailbox.read((batch, rows[self._me], heads, width)).transpose(1, 2)
        # a copy, where the result may be kept until the next attention writes to the inbox
        return here_again.clone() if meanwhile is None else here_again

    def gather_keys(
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
