"""Which blocks the stages of a pipeline hold, visit by visit, in both schedules."""

from collections.abc import Iterator, Sequence

from ditplan.profiles.configuration import PipeFusion
from ditplan.profiles.model import BlockRun


def folded(values: Sequence[float]) -> list[float]:
    """What a block and its mirror have together, from the outermost ones on; one that is its own
    mirror counts once.

    >>> folded([1.0, 2.0, 4.0, 8.0, 16.0])
    [17.0, 10.0, 4.0]
    """
    half = len(values) // 2
    pairs = [a + b for a, b in zip(values[:half], reversed(values), strict=False)]
    return [*pairs, *values[half : len(values) - half]]


def unfolded(pairs_per_stage: Sequence[int], blocks: int) -> tuple[int, ...]:
    """How many blocks stages have of which `folded` pairs were given out.

    >>> unfolded((1, 2), 5)
    (2, 3)
    """
    *others, last = (2 * pairs for pairs in pairs_per_stage)
    return (*others, last - blocks % 2)


def runs_of_visits(blocks: Sequence[BlockRun], part: PipeFusion) -> list[list[tuple[int, ...]]]:
    """How many blocks of each run a patch goes through on each stage, each time that it comes by.

    Stages of 10 and 47 blocks of FLUX, which has 19 double blocks and 38 single ones, give
    `[[(10, 0)], [(9, 38)]]`.
    """
    return [
        [tuple(_overlaps(blocks, visit.start, visit.stop)) for visit in part.visits(stage)]
        for stage in range(len(part.blocks_per_stage))
    ]


def runs_of_stages(blocks: Sequence[BlockRun], part: PipeFusion) -> list[tuple[int, ...]]:
    """How many blocks of each run a stage has, for all stages."""
    return [tuple(map(sum, zip(*visits, strict=True))) for visits in runs_of_visits(blocks, part)]


def _overlaps(blocks: Sequence[BlockRun], first: int, last: int) -> Iterator[int]:
    begin = 0
    for run in blocks:
        yield max(0, min(last, begin + run.count) - max(first, begin))
        begin += run.count
