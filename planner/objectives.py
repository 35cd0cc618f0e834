"""What a search makes best (latency, throughput or the number of GPUs), and the Pareto set that
each of these choices is read from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ditplan.profiles.errors import InputError, Setting
from ditplan.profiles.plan import Quality

ObjectiveName = Literal["latency", "throughput", "gpus"]


@dataclass(frozen=True)
class Figures:
    """What is weighed of a candidate; of all but `pictures` less is better.

    `quality` comes from `quality_order`. `pictures` are made in `latency_s` by all replicas; how
    many replicas there are is decided by `gpus`, and fewer GPUs never make for fewer of them.
    """

    latency_s: float
    gpus: int
    memory_bytes: int
    quality: tuple[int, float]
    pictures: int = 1

    @property
    def throughput_per_s(self) -> float:
        """Pictures a second, without the digits in which equal ones differ."""
        return float(f"{self.pictures / self.latency_s:.6g}")

    @property
    def weighed(self) -> tuple[float, int, int, tuple[int, float]]:
        """The four dims of the Pareto set."""
        return (self.latency_s, self.gpus, self.memory_bytes, self.quality)


def quality_order(quality: Quality) -> tuple[int, float]:
    """Sorts qualities: exact, then by distance from one device, then those of unknown distance."""
    if quality.exact:
        return (0, 0.0)
    return (2, 0.0) if quality.relative_l2 is None else (1, quality.relative_l2)


@dataclass(frozen=True)
class Objective:
    """What to make best among candidates whose latency is at most `max_latency_s`, if that is
    given.
    """

    name: ObjectiveName = "latency"
    max_latency_s: float | None = None

    def is_met(self, figures: Figures) -> bool:
        """Whether a candidate is fast enough."""
        return self.max_latency_s is None or figures.latency_s <= self.max_latency_s

    def key(self, figures: Figures) -> tuple[object, ...]:
        """Sorts candidates best first; one that dominates another always comes before it."""
        if self.name == "throughput":
            return (-figures.throughput_per_s, figures.gpus, *figures.weighed)
        if self.name == "gpus":
            return (figures.gpus, *figures.weighed)
        return figures.weighed


FASTEST = Objective()
"""What is made best if nothing else is asked for."""


def objective_for(name: ObjectiveName, max_latency_s: float | None) -> Objective:
    """The objective that a user asked for.

    Raises:
        InputError: a bound that is missing or has no use.
    """
    if name == "gpus" and max_latency_s is None:
        raise InputError(
            Setting("objective", "gpus"),
            ": one GPU always is the fewest; say how long a call may take with ",
            Setting("max_latency_s", "S"),
        )
    if name == "latency" and max_latency_s is not None:
        raise InputError(
            Setting("max_latency_s", f"{max_latency_s:g}"),
            ": ",
            Setting("objective", "latency"),
            " finds the fastest plan anyway; leave it out, or use ",
            Setting("objective", "throughput"),
            " or gpus",
        )
    return Objective(name, max_latency_s)


def dominates(one: Figures, other: Figures) -> bool:
    """Whether one is no worse in latency, GPUs, memory and quality, and better in one of them."""
    return (
        one.latency_s <= other.latency_s
        and one.gpus <= other.gpus
        and one.memory_bytes <= other.memory_bytes
        and one.quality <= other.quality
        and one.weighed != other.weighed
    )


def pareto_set(figures: Sequence[Figures]) -> list[int]:
    """The places of those that no other one dominates, fastest first."""
    found: list[int] = []
    # what dominates a candidate sorts before it, and is dominated itself only by what is found
    for place in sorted(range(len(figures)), key=lambda place: figures[place].weighed):
        if not any(dominates(figures[kept], figures[place]) for kept in found):
            found.append(place)
    return found


def choose(figures: Sequence[Figures], objective: Objective) -> int | None:
    """The place of the best one that is fast enough, read from the Pareto set; None if none is."""
    enough = [place for place in pareto_set(figures) if objective.is_met(figures[place])]
    return min(enough, key=lambda place: objective.key(figures[place]), default=None)
