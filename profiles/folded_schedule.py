"""PipeFusion's folded schedule, as far as planner and runtime have to agree on it."""


def most_underway(stage: int, stages: int, patches: int) -> int:
    """Patches that a stage lets be on their way behind it, before it takes one that comes back: as
    many as fit in there while all stages are busy. With one more, patches would wait for the stages
    after this one to have done with them.

    >>> [most_underway(stage, stages=4, patches=3) for stage in range(4)]
    [3, 3, 2, 1]
    """
    return min(stages - stage, patches)
