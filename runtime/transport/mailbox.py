"""Exchanges between GPUs of one host that write straight into each other's memory.

Each tensor is stored once, where and how its reader wants it: no packing, no unpacking, and no
collective's start-up. Source of the technique: PyTorch's symmetric memory.
"""

import math
import platform
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from ditplan.profiles.peer_memory import can_push
from ditplan.runtime.groups import AxisGroup, RankContext, Work
from ditplan.runtime.ranks.devices import common_link_kind, link_kind
from ditplan.runtime.ranks.environment import environment
from ditplan.runtime.transport.copy_engine import StridedRows, copy_rows
from ditplan.runtime.transport.symmetric_memory import allocate


def can_write_to_peers(group: AxisGroup, context: RankContext) -> bool:
    """Whether all GPUs of a group may push into each other's memory, by `can_push`; all its ranks
    ask.
    """
    if context.device.type != "cuda":
        return False
    mine = (platform.node(), link_kind(context))
    found: list[Any] = [None] * group.size
    dist.all_gather_object(found, mine, group=group.group)
    kinds = [kind for _, kind in found]
    hosts = len({host for host, _ in found})
    return can_push(hosts, common_link_kind(kinds, environment()))


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
        """Memory for so many numbers; `boxes` has one for each rank of the process group."""
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
        from ditplan.runtime.transport.push_kernel import COLUMNS, ROWS, push_boxes

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
                StridedRows(tensor.data_ptr() + start, row_stride),
                StridedRows(inbox + there * one, box.row_stride * one),
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
