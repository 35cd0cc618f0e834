"""Which blocks a stage of PipeFusion gets: consecutive ones, so that the slowest is fastest."""

import itertools
import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

AS_FAST = 1.01
"""Divisions whose slowest stage takes up to so many times the least count as equally fast: nothing
is known of a block's time to better than a percent."""

ROUNDED_UP = 1 + 1e-9
"""More than sums are off by rounding."""

CostOf = Callable[[int, int, int], float]
"""What a stage costs, by its number, its first block and the one after its last."""


@dataclass(frozen=True)
class StageCost:
    """What stages cost: `until[b]` is what the first b blocks do, `extra` what the first and the
    last stage do beside their blocks, `least` what any number of blocks does.
    """

    until: list[float]
    extra: tuple[float, float] = (0.0, 0.0)
    least: float = 0.0


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
    can be, whatever the time. Of divisions that are `AS_FAST` it is one whose largest stage is
    smallest, also among the first ones, however many.

    Raises:
        ValueError: fewer blocks than stages.
    """
    blocks = len(seconds)
    if not 1 <= stages <= blocks:
        raise ValueError(f"{blocks} blocks can't make {stages} stages")
    taken = StageCost(list(accumulate(seconds, initial=0.0)), extra_s, least_s)
    held = StageCost(list(accumulate(sizes, initial=0.0)))
    _, slowest_s = _least_worst(taken, held, room, stages)
    if math.isinf(slowest_s):
        return _least_worst(held, taken, math.inf, stages)[0]
    return _least_worst(held, taken, AS_FAST * slowest_s, stages)[0]


@dataclass(frozen=True)
class StageWork:
    """What blocks cost on a stage's ranks: the seconds of each, the least that any number of them
    takes, and the room that there is, in the unit of the blocks' sizes.
    """

    seconds: Sequence[float]
    least_s: float
    room: float


def balanced_unlike_stages(
    stages: Sequence[StageWork],
    sizes: Sequence[float],
    extra_s: tuple[float, float] = (0.0, 0.0),
) -> tuple[int, ...]:
    """The same as `balanced_stages` for stages of unlike ranks, each with a room of its own: where
    blocks can't be within all of them, the most that one exceeds it is made as small as can be.

    Raises:
        ValueError: fewer blocks than stages.
    """
    if not 1 <= len(stages) <= len(sizes):
        raise ValueError(f"{len(sizes)} blocks can't make {len(stages)} stages")
    until = [list(accumulate(stage.seconds, initial=0.0)) for stage in stages]
    held = list(accumulate(sizes, initial=0.0))

    rooms, least_s = [stage.room for stage in stages], [stage.least_s for stage in stages]
    beside_s = _extras(StageCost([], extra_s), len(stages))

    def excess(stage: int, first: int, last: int) -> float:
        return held[last] - held[first] - rooms[stage]

    def fitting_s(stage: int, first: int, last: int) -> float:
        if held[last] - held[first] - rooms[stage] > 0:
            return math.inf
        blocks_s = until[stage][last] - until[stage][first]
        return max(least_s[stage], blocks_s) + beside_s[stage]

    _, slowest_s = _best_division(fitting_s, len(sizes), len(stages))
    if math.isinf(slowest_s):
        return _best_division(excess, len(sizes), len(stages))[0]

    def fast_size(stage: int, first: int, last: int) -> float:
        is_fast = fitting_s(stage, first, last) <= AS_FAST * slowest_s
        return held[last] - held[first] if is_fast else math.inf

    return _best_division(fast_size, len(sizes), len(stages))[0]


def _best_division(cost_of: CostOf, blocks: int, stages: int) -> tuple[tuple[int, ...], float]:
    """Blocks per stage whose worst stage costs least, and what it costs, which grows with its
    blocks.

    As far as they can be better all cuts are tried: between unlike stages the best one may move
    back with one more block.
    """
    worst = [math.inf] + [cost_of(0, 0, last) for last in range(1, blocks + 1)]
    cuts: list[list[int]] = []
    for stage in range(1, stages):
        made, at = [math.inf] * (blocks + 1), [stage] * (blocks + 1)
        most = blocks - (stages - 1 - stage)
        for last in range(stage + 1 if stage < stages - 1 else blocks, most + 1):
            for cut in range(last - 1, stage - 1, -1):
                cost = cost_of(stage, cut, last)
                if cost >= made[last]:
                    break
                if worst[cut] < made[last]:
                    made[last], at[last] = max(worst[cut], cost), cut
        worst = made
        cuts.append(at)
    return _divided_at(cuts, blocks), worst[blocks]


def _divided_at(cuts: Sequence[Sequence[int]], blocks: int) -> tuple[int, ...]:
    """Blocks per stage; `cuts[s][b]` is where stage s + 1 begins if it ends with the b-th block."""
    counts, last = [], blocks
    for at in reversed(cuts):
        counts.append(last - at[last])
        last = at[last]
    return (last, *reversed(counts))


def _least_worst(
    cost: StageCost, other: StageCost, limit: float, stages: int
) -> tuple[tuple[int, ...], float]:
    """Blocks per stage whose worst stage costs least, and what it costs: infinity where no division
    has the other cost of all stages within its limit.

    All but the first and the last stage are alike, and both costs grow with a stage's blocks. So
    from the last stage on each begins where those before it come to cost as much as it does.
    """
    line = _Line(cost.until, cost.least, _extras(cost, stages), _reaches(other, limit, stages))
    cuts = [len(cost.until) - 1]
    for stage in range(stages - 1, 0, -1):
        cuts.append(_best_cut(line, stage, cuts[-1]))
    ends = (0, *reversed(cuts))
    divided = list(enumerate(itertools.pairwise(ends)))
    worst = max(line.cost_of(stage, first, last) for stage, (first, last) in divided)
    return tuple(last - first for _, (first, last) in divided), worst


@dataclass(frozen=True)
class _Line:
    """What stages cost, as in `StageCost`, with what each does beside its blocks; and by stage and
    first block the farthest end that another cost allows.
    """

    until: list[float]
    least: float
    extras: list[float]
    reaches: list[list[int]]

    def cost_of(self, stage: int, first: int, last: int) -> float:
        """Of some blocks in a stage: infinity beyond what is allowed."""
        if last > self.reaches[stage][first]:
            return math.inf
        return max(self.least, self.until[last] - self.until[first]) + self.extras[stage]

    def can_divide(self, blocks: int, stages: int, limit: float) -> bool:
        """Whether the first blocks can make so many stages, of which each costs less than a limit:
        each is filled as far as that goes.
        """
        until, end = self.until, 0
        if until[blocks] > ROUNDED_UP * stages * limit:
            return False
        for extra, reach in zip(self.extras[:stages], self.reaches, strict=False):
            if self.least + extra >= limit:
                continue
            before, farthest = until[end], min(reach[end], blocks)
            while end < farthest and until[end + 1] - before + extra < limit:
                end += 1
        return end == blocks


def _reaches(other: StageCost, limit: float, stages: int) -> list[list[int]]:
    """How far each stage reaches from each block with a cost within a limit."""
    until, blocks, found = other.until, len(other.until) - 1, dict[float, list[int]]()
    extras = _extras(other, stages)
    for extra in dict.fromkeys(extras):
        reach, last = [], 0
        for first in range(blocks + 1):
            last = max(first, last)
            if other.least + extra <= limit:
                while last < blocks and until[last + 1] - until[first] + extra <= limit:
                    last += 1
            reach.append(last)
        found[extra] = reach
    return [found[extra] for extra in extras]


def _best_cut(line: _Line, stage: int, last: int) -> int:
    """The block with which a stage begins that ends before the `last` one, so that the worst of it
    and of those before it is best.
    """

    def is_lighter(cut: int) -> bool:
        return not line.can_divide(cut, stage, line.cost_of(stage, cut, last))

    cut = stage + bisect_left(range(stage, last - 1), True, key=is_lighter)
    if cut == stage:
        return cut
    # from there on the stages before it cost more; a block earlier it does itself
    cost = line.cost_of(stage, cut - 1, last)
    is_no_worse = math.isinf(cost) or line.can_divide(cut, stage, math.nextafter(cost, math.inf))
    return cut if is_no_worse else cut - 1


def _extras(cost: StageCost, stages: int) -> list[float]:
    """What each stage does beside its blocks."""
    extras = [0.0] * stages
    extras[0] += cost.extra[0]
    extras[-1] += cost.extra[1]
    return extras
