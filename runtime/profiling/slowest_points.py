"""Of what all ranks measured of a model at once, what counts."""

from collections.abc import Sequence
from typing import Any

from ditplan.profiles.model import TimePoint


def slowest_of_ranks(points: Sequence[Sequence[TimePoint]]) -> tuple[TimePoint, ...]:
    """Of each point that every rank measured, the slowest rank's."""
    by_rank = [{_shape_of(point): point for point in of_rank} for of_rank in points]
    everywhere = [shape for shape in by_rank[0] if all(shape in known for known in by_rank)]
    return tuple(
        max((known[shape] for known in by_rank), key=lambda point: point.median_s)
        for shape in everywhere
    )


def _shape_of(point: TimePoint) -> tuple[Any, ...]:
    """What was measured; blocks may have attended by other kernels on other ranks."""
    timings = {"median_s", "p95_s", "host_s", "runs"}
    ignored = timings if point.part == "attention" else timings | {"kernel"}
    return tuple(point.model_dump(exclude=ignored).values())
