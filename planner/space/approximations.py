"""Which approximate plans a search may choose from: settings of PipeFusion, and step caches."""

from dataclasses import dataclass

from ditplan.profiles.configuration import TaylorSeer
from ditplan.profiles.errors import Setting
from ditplan.profiles.plan import Quality
from ditplan.profiles.quality import MeasuredQuality

PATCHES_A_STAGE = (1, 2, 4)
"""Fewer than one leave stages idle; with more, patches get too small to be worth their launches.

One patch more than stages is tried as well: it hides what is waited for between two stages.
"""

STEP_CACHES = tuple(TaylorSeer(interval=interval) for interval in (2, 3, 5))
"""What is tried where any quality will do."""

UNKNOWN = Quality(exact=False)
"""What is said of an approximate plan that wasn't held against one device."""

PIPEFUSION_S = (Setting("patches"), " and ", Setting("warmup_steps"), " are PipeFusion's")
"""How a message begins that refuses them on a mesh without stages."""


@dataclass(frozen=True)
class ApproximationPolicy:
    """Which settings of PipeFusion and which step caches may be used, and what was measured of
    their quality.

    `patches` and `warmup_steps` are those that the user fixed. With a `bound` only settings are
    allowed whose measured distance from one device keeps it. With `prefers_exact` a plan whose
    distance isn't known must be faster than all exact ones by more than predictions can miss.
    """

    patches: int | None = None
    warmup_steps: int | None = None
    bound: float | None = None
    known: MeasuredQuality | None = None
    step_caches: tuple[TaylorSeer, ...] = ()
    prefers_exact: bool = True

    def settings(self, stages: int) -> tuple[tuple[int, int], ...]:
        """Patches and warm-up steps to try with so many stages.

        Without a bound one warm-up step: more only cost.
        """
        if self.bound is not None:
            points = self.known.points if self.known else ()
            return tuple(
                (point.patches, point.warmup_steps)
                for point in points
                if point.relative_l2 <= self.bound
                and self.patches in (None, point.patches)
                and self.warmup_steps in (None, point.warmup_steps)
            )
        warmup = 1 if self.warmup_steps is None else self.warmup_steps
        if self.patches is not None:
            return ((self.patches, warmup),)
        counts = {stages + 1, *(stages * times for times in PATCHES_A_STAGE)}
        return tuple((count, warmup) for count in sorted(counts))


def step_caches_within(bound: float, known: MeasuredQuality | None) -> tuple[TaylorSeer, ...]:
    """The step caches whose measured distance from one device keeps a bound."""
    points = known.step_caches if known else ()
    return tuple(point.step_cache for point in points if point.relative_l2 <= bound)


def quality_with_cache(known: MeasuredQuality | None, step_cache: TaylorSeer) -> Quality:
    """What a plan with a step cache says of its quality."""
    for point in known.step_caches if known else ():
        if point.step_cache == step_cache:
            return Quality(
                exact=False, relative_l2=point.relative_l2, measured_with=point.measured_with
            )
    return UNKNOWN


def quality_of(known: MeasuredQuality | None, patches: int, warmup_steps: int) -> Quality:
    """What a plan with PipeFusion says of its quality."""
    distance = known.relative_l2(patches, warmup_steps) if known else None
    if known is None or distance is None:
        return UNKNOWN
    return Quality(exact=False, relative_l2=distance, measured_with=known.measured_with)
