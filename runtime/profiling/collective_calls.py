"""The calls that the cluster profiler times: each operation on tensors of a given size."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist

from ditplan.profiles.cluster import PEER_OPERATIONS, Operation
from ditplan.runtime.groups import AxisGroup, RankContext
from ditplan.runtime.profiling.timing import captured
from ditplan.runtime.sequence.peer_ulysses import PeerExchange

Call = Callable[[], object]
Prepare = Callable[[RankContext, AxisGroup, int], Call]

CAPTURED_EXCHANGES = 10
# Of SD3's attention. Only the product with the tokens counts.
HEADS, HEAD_DIM = 24, 64


def operations_in_call(operation: Operation) -> int:
    """How many operations one call of `OPERATION_CALLS` makes.

    Writes to peers are captured several at a time: the host needs as long to launch one as the
    GPUs to make it, and the planner counts launches apart.
    """
    return CAPTURED_EXCHANGES if operation in PEER_OPERATIONS.values() else 1


def _all_to_all(context: RankContext, group: AxisGroup, size_bytes: int) -> Call:
    sent = _buffer(context, group, size_bytes)
    received = torch.zeros_like(sent)
    return lambda: dist.all_to_all_single(received, sent, group=group.group)


def _all_gather(context: RankContext, group: AxisGroup, size_bytes: int) -> Call:
    sent = _buffer(context, group, size_bytes)
    received = sent.new_zeros(group.size * sent.numel())
    return lambda: dist.all_gather_into_tensor(received, sent, group=group.group)


def _send_recv(context: RankContext, group: AxisGroup, size_bytes: int) -> Call:
    sent = _buffer(context, group, size_bytes)
    received = torch.zeros_like(sent)
    following = group.ranks[(group.index + 1) % group.size]
    preceding = group.ranks[group.index - 1]

    def step() -> None:
        for work in dist.batch_isend_irecv(
            [
                # as a ring of attention posts them
                dist.P2POp(dist.irecv, received, preceding, group.group),
                dist.P2POp(dist.isend, sent, following, group.group),
            ]
        ):
            work.wait()

    return step


def _all_reduce(context: RankContext, group: AxisGroup, size_bytes: int) -> Call:
    numbers = _buffer(context, group, size_bytes)
    return lambda: dist.all_reduce(numbers, group=group.group)


def _peer_all_to_all(context: RankContext, group: AxisGroup, size_bytes: int) -> Call:
    """Ulysses' exchange of q, k and v."""
    tensors = _attention_tensors(context, group, 3, size_bytes)
    exchange = PeerExchange(group, context.device)
    tokens = [tensors[0].shape[2]] * group.size
    return _several_captured(partial(exchange.gather_tokens, tensors, tokens), context)


def _peer_all_gather(context: RankContext, group: AxisGroup, size_bytes: int) -> Call:
    """A ring's gathering of keys and values."""
    key, value = _attention_tensors(context, group, 2, size_bytes)
    exchange = PeerExchange(group, context.device)
    tokens = [key.shape[2]] * group.size
    return _several_captured(partial(exchange.gather_kv, key, value, tokens), context)


OPERATION_CALLS: dict[Operation, Prepare] = {
    "all_to_all": _all_to_all,
    "all_gather": _all_gather,
    "send_recv": _send_recv,
    "all_reduce": _all_reduce,
    "peer_all_to_all": _peer_all_to_all,
    "peer_all_gather": _peer_all_gather,
}


@dataclass(frozen=True)
class _Replay:
    """A captured call; the call itself holds the memory that the graph reads and writes."""

    replay: Callable[[], None]
    call: Call

    def __call__(self) -> None:
        self.replay()


def _several_captured(call: Call, context: RankContext) -> Call:
    def several() -> None:
        for _ in range(CAPTURED_EXCHANGES):
            call()

    return _Replay(captured(several, context.device), call)


def _buffer(context: RankContext, group: AxisGroup, size_bytes: int) -> torch.Tensor:
    """So many bytes as single-precision numbers, rounded up to an equal share for each rank."""
    numbers = -(-size_bytes // (4 * group.size)) * group.size
    return torch.zeros(numbers, dtype=torch.float32, device=context.device)


def _attention_tensors(
    context: RankContext, group: AxisGroup, count: int, size_bytes: int
) -> Sequence[torch.Tensor]:
    """Tensors (1, H, S, D) of so many bytes together, to whole tokens, with the strides of (1, S,
    H, D); each rank gets as many heads.
    """
    heads = group.size * max(1, HEADS // group.size)
    token_bytes = count * heads * HEAD_DIM * torch.bfloat16.itemsize
    shape = (1, max(1, round(size_bytes / token_bytes)), heads, HEAD_DIM)
    return [
        torch.zeros(shape, dtype=torch.bfloat16, device=context.device).transpose(1, 2)
        for _ in range(count)
    ]
