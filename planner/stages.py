"""Which blocks a stage of PipeFusion gets: consecutive ones, so that the slowest is fastest."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

from ditplan.profiles.model import BlockRun

AS_FAST = 1.01
"""Divisions whose slowest stage takes up to so many times the least count as equally fast: nothing
is known of a block's time to better than a percent."""

StageCost = Callable[[int, int, int], float]
"""What a stage costs, given its number, its first block and the one after its last."""


def balanced_stages(
    seconds: Sequence[float],
    sizes: Sequence[float],
    stages: int,
    *,
    extra_s: tuple[float, float] = (0.0, 0.0),
    least_s: float = 0.0,
    room: float = math.inf,
) -> tuple[int, ...]:
    """How many blocks each stage gets, so that the slowest stage takes the least time.

    `seconds` and `sizes` are those of each block, `extra_s` what the first and the last stage do
    beside their blocks, `least_s` what any number of blocks takes at least. No stage may hold more
    than `room`, in the unit of the sizes; where that can't be, the largest one is made as small as
    can be, whatever the time. Of divisions that are `AS_FAST` it is the one whose largest stage is
    smallest.

    Raises:
        ValueError: fewer blocks than stages.
    """
    blocks = len(seconds)
    if not 1 <= stages <= blocks:
        raise ValueError(f"{blocks} blocks can't make {stages} stages")
    until_s = list(accumulate(seconds, initial=0.0))
    until_size = list(accumulate(sizes, initial=0.0))

    def seconds_of(stage: int, first: int, last: int) -> float:
        taken_s = max(least_s, until_s[last] - until_s[first])
        if stage == 0:
            taken_s += extra_s[0]
        return taken_s + extra_s[1] if stage == stages - 1 else taken_s

    def size_of(stage: int, first: int, last: int) -> float:
        return until_size[last] - until_size[first]

    _, slowest_s = _least_worst(seconds_of, size_of, room, blocks, stages)
    if math.isinf(slowest_s):
        return _least_worst(size_of, seconds_of, math.inf, blocks, stages)[0]
    return _least_worst(size_of, seconds_of, AS_FAST * slowest_s, blocks, stages)[0]


def runs_of_stages(
    blocks: Sequence[BlockRun], blocks_per_stage: Sequence[int]
) -> list[tuple[int, ...]]:
    """How many blocks of each run a stage has, for all stages.

    >>> runs_of_stages(flux.blocks, (10, 47))  # 19 double blocks, 38 single ones
    [(10, 0), (9, 38)]
    """
    found, first = [], 0
    for count in blocks_per_stage:
        found.append(tuple(_overlaps(blocks, first, first + count)))
        first += count
    return found


def _overlaps(blocks: Sequence[BlockRun], first: int, last: int) -> Iterator[int]:
    begin = 0
    for run in blocks:
        yield max(0, min(last, begin + run.count) - max(first, begin))
        begin += run.count


def _least_worst(
    cost: StageCost, other: StageCost, limit: float, blocks: int, stages: int
) -> tuple[tuple[int, ...], float]:
    """Blocks per stage whose worst stage costs least, and what it costs: infinity where no division
    has the other cost of all stages within its limit.

    Dynamic programming over (stages, blocks) in O(stages x blocks): both costs grow with a stage's
    blocks, so with one more block the best place for the last cut never moves back.
    """

    def cost_of(stage: int, first: int, last: int) -> float:
        return cost(stage, first, last) if other(stage, first, last) <= limit else math.inf

    # worst[b] is the worst of the stages so far over the first b blocks
    worst = [math.inf] + [cost_of(0, 0, last) for last in range(1, blocks + 1)]
    cuts: list[list[int]] = []
    for stage in range(1, stages):
        made, at = [math.inf] * (blocks + 1), [0] * (blocks + 1)
        cut = stage
        for last in range(stage + 1, blocks + 1):
            own = cost_of(stage, cut, last)
            while cut + 1 < last and worst[cut] < own:
                cut += 1
                own = cost_of(stage, cut, last)
            made[last], at[last] = max(worst[cut], own), cut
            if cut > stage:
                earlier = max(worst[cut - 1], cost_of(stage, cut - 1, last))
                if earlier < made[last]:
                    made[last], at[last] = earlier, cut - 1
        worst = made
        cuts.append(at)
    counts, last = [], blocks
    for at in reversed(cuts):
        counts.append(last - at[last])
        last = at[last]
    return (last, *reversed(counts)), worst[blocks]
