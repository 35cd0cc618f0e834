"""The one kernel of our own: copies boxes of tokens and heads into the memory of peers."""

import triton
import triton.language as tl

ROWS = 4
COLUMNS = 1024


@triton.jit
def push_boxes(
    first,
    second,
    third,
    inboxes,
    boxes,
    first_batch,
    first_row,
    first_head,
    second_batch,
    second_row,
    second_head,
    third_batch,
    third_row,
    third_head,
    batches,
    peers,
    width: tl.constexpr,
    rows_at_once: tl.constexpr,
    columns_at_once: tl.constexpr,
):
    """Copies of each of up to three tensors (B, H, S, D) one box a peer into that peer's inbox.

    Each tensor has its own strides; those of D are 1.
    `boxes` (peers, 8) holds, with all offsets and strides in units of D: first row, rows, first
    head, heads, offset of the box, stride between tensors, between batches, between rows.
    Grid: (row blocks x peers, tensors x batches).
    """
    peer = tl.program_id(0) % peers
    block = tl.program_id(0) // peers
    tensor = tl.program_id(1) // batches
    batch = tl.program_id(1) % batches
    box = boxes + peer * 8
    start_row, rows = tl.load(box), tl.load(box + 1)
    start_head, heads = tl.load(box + 2), tl.load(box + 3)
    offset = tl.load(box + 4) + tensor * tl.load(box + 5) + batch * tl.load(box + 6)
    inbox_row = tl.load(box + 7)
    source = first
    batch_stride, row_stride, head_stride = first_batch, first_row, first_head
    if tensor == 1:
        source = second
        batch_stride, row_stride, head_stride = second_batch, second_row, second_head
    if tensor == 2:
        source = third
        batch_stride, row_stride, head_stride = third_batch, third_row, third_head
    inbox = tl.load(inboxes + peer).to(tl.pointer_type(first.dtype.element_ty))
    inbox = tl.multiple_of(inbox, 16) + offset * width
    row = block * rows_at_once + tl.arange(0, rows_at_once)
    source += batch * batch_stride + start_head * head_stride
    source_rows = ((start_row + row) * row_stride)[:, None]
    inbox_rows = (row * inbox_row * width)[:, None]
    for start in range(0, heads * width, columns_at_once):
        column = start + tl.arange(0, columns_at_once)
        inside = (row[:, None] < rows) & (column[None, :] < heads * width)
        column_of_source = (column // width) * head_stride + column % width
        numbers = tl.load(source + source_rows + column_of_source[None, :], mask=inside)
        tl.store(inbox + inbox_rows + column[None, :], numbers, mask=inside)
