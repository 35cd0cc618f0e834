"""Seconds by cause and bytes by kind of link, as they add up."""

import math
from collections import defaultdict
from dataclasses import dataclass, field

from ditplan.planner.cost.roofline import Timed
from ditplan.profiles.model import Source

SOURCES: tuple[Source, ...] = ("measured", "interpolated", "computed")


@dataclass
class CostBreakdown:
    """Seconds by part and source, and bytes by kind of link, of a denoising step or a loop."""

    seconds: defaultdict[tuple[str, Source], float] = field(
        default_factory=lambda: defaultdict(float)
    )
    link_bytes: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, part: str, timed: Timed, times: float = 1.0) -> None:
        """Books a duration that occurs `times` times."""
        self.seconds[part, timed.source] += timed.seconds * times

    def include(self, other: "CostBreakdown", times: float = 1.0) -> None:
        """Books the seconds of another ledger `times` times; bytes are left out."""
        for key, seconds in other.seconds.items():
            self.seconds[key] += seconds * times

    def include_all(self, other: "CostBreakdown", times: float = 1.0) -> None:
        """Books the seconds and the bytes of another ledger `times` times."""
        self.include(other, times)
        for kind, moved_bytes in other.link_bytes.items():
            self.link_bytes[kind] += moved_bytes * times

    def include_part(self, part: str, other: "CostBreakdown", times: float) -> None:
        """Books the seconds of one part of another ledger `times` times."""
        for (name, source), seconds in other.seconds.items():
            if name == part:
                self.seconds[name, source] += seconds * times

    @property
    def total(self) -> float:
        """All seconds."""
        return math.fsum(self.seconds.values())


def worst_source(ledger: CostBreakdown) -> Source:
    """The least certain source of those that make up more than a twentieth of it."""
    by_source: defaultdict[Source, float] = defaultdict(float)
    for (_, source), seconds in ledger.seconds.items():
        by_source[source] += seconds
    large = [source for source in SOURCES if by_source[source] > 0.05 * ledger.total]
    return large[-1] if large else "computed"
