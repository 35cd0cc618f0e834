"""Times exchanges between pairs of ranks, both ways at once, round after round."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from ditplan.runtime.groups import RankContext
from ditplan.runtime.profiling.pair_rounds import Pair, Round
from ditplan.runtime.profiling.timing import synchronize

SIZES = {"cuda": (4 << 10, 1 << 20, 64 << 20), "cpu": (4 << 10, 256 << 10, 4 << 20)}
TIMINGS = 3
# One within hosts and one between them.
FEWEST_ROUNDS = 2
LONGEST_S = 0.25
"""Of one exchange: no larger size is tried after one that took longer."""


@dataclass(frozen=True)
class PairSpeed:
    """What an exchange takes: seconds at the smallest size, and bytes/s each way at the largest."""

    latency_s: float
    bytes_per_s: float


Timed = list[tuple[int, float]]
"""Bytes and seconds."""


def measure_rounds(
    context: RankContext, rounds: Sequence[Round], budget_s: float
) -> list[Timed | None]:
    """Times the rounds that the budget has room for, the first ones at least; a task for every
    rank.

    Returns, for each of them, this rank's sizes with seconds; None where it has no partner.
    """
    began, found = time.perf_counter(), list[Timed | None]()
    for one in rounds:
        partners = {a: b for a, b in one.pairs} | {b: a for a, b in one.pairs}
        found.append(_measure(context, partners.get(context.rank)))
        took_s = _slowest(context, time.perf_counter() - began)
        if took_s > budget_s and len(found) >= FEWEST_ROUNDS:
            break
    return found


def speeds_of(
    rounds: Sequence[Round], by_rank: Sequence[Sequence[Timed | None]]
) -> list[dict[Pair, PairSpeed]]:
    """The speed of each pair of each round that was measured; the slower of its ranks counts."""
    speeds = []
    for number, _ in enumerate(by_rank[0]):
        found = {}
        for a, b in rounds[number].pairs:
            of_a, of_b = by_rank[a][number], by_rank[b][number]
            assert of_a is not None and of_b is not None
            slower = [
                (size, max(one_s, other_s))
                for (size, one_s), (_, other_s) in zip(of_a, of_b, strict=True)
            ]
            size, seconds = slower[-1]
            found[a, b] = PairSpeed(slower[0][1], size / seconds)
        speeds.append(found)
    return speeds


def _measure(context: RankContext, partner: int | None) -> Timed | None:
    timed: Timed = []
    for size in SIZES[context.device.type]:
        exchange = _Exchange(context, partner, size)
        exchange()
        taken = [_time(context, exchange) for _ in range(TIMINGS)]
        timed.append((size, statistics.median(taken)))
        if _slowest(context, timed[-1][1]) > LONGEST_S:
            break
    return None if partner is None else timed


class _Exchange:
    """One message each way with a partner; nothing without one."""

    def __init__(self, context: RankContext, partner: int | None, size: int) -> None:
        numbers = 0 if partner is None else size // 4
        self._sent = torch.zeros(numbers, dtype=torch.float32, device=context.device)
        self._received = torch.zeros_like(self._sent)
        self._partner = partner

    def __call__(self) -> None:
        if self._partner is None:
            return
        for work in dist.batch_isend_irecv(
            [
                # with its send posted first, gloo takes one way after the other
                dist.P2POp(dist.irecv, self._received, self._partner),
                dist.P2POp(dist.isend, self._sent, self._partner),
            ]
        ):
            work.wait()


def _time(context: RankContext, exchange: _Exchange) -> float:
    dist.barrier()
    synchronize(context.device)
    start = time.perf_counter()
    exchange()
    synchronize(context.device)
    return time.perf_counter() - start


def _slowest(context: RankContext, seconds: float) -> float:
    """The largest over all ranks, so that all decide alike."""
    number = torch.tensor([seconds], dtype=torch.float64, device=context.device)
    dist.all_reduce(number, dist.ReduceOp.MAX)
    return float(number.item())


def of_kind(
    rounds: Sequence[Round], speeds: Sequence[Mapping[Pair, PairSpeed]], about: str
) -> list[Mapping[Pair, PairSpeed]]:
    """The speeds of the rounds about something."""
    return [found for one, found in zip(rounds, speeds, strict=False) if one.about == about]
