"""Plans that were priced, as far as others have to be better than they are."""

import math
from bisect import bisect_right, insort

from ditplan.planner.objectives import quality_order
from ditplan.profiles.plan import Quality


class ParetoFront:
    """Plans that no other beats in latency, memory and quality at once, of those with the fewest
    GPUs first.
    """

    def __init__(self) -> None:
        self._by_quality: dict[tuple[int, float], list[tuple[float, int]]] = {}

    def add(self, latency_s: float, memory_bytes: int, quality: Quality) -> None:
        """Notes a plan that has no fewer GPUs than those before it."""
        points = self._by_quality.setdefault(quality_order(quality), [])
        if self._has_better(points, latency_s, memory_bytes):
            return
        kept = [p for p in points if p[0] < latency_s or p[1] < memory_bytes]
        insort(kept, (latency_s, memory_bytes))
        self._by_quality[quality_order(quality)] = kept

    def beats(self, least_s: float, least_bytes: float, quality: Quality) -> bool:
        """Whether a plan noted before is at least as good as one with no fewer GPUs that takes at
        least this.
        """
        order = quality_order(quality)
        return any(
            noted <= order and self._has_better(points, least_s, least_bytes)
            for noted, points in self._by_quality.items()
        )

    def _has_better(self, points: list[tuple[float, int]], seconds: float, count: float) -> bool:
        """Later points are slower and smaller, so of those that are as fast the last one counts."""
        as_fast = bisect_right(points, (seconds, math.inf))
        return as_fast > 0 and points[as_fast - 1][1] <= count
