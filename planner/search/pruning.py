"""Which configurations of a mesh are worth a price, by what plans cost at least."""

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter

from ditplan.planner.cost.lower_bounds import LowerBounds, OrderKey
from ditplan.planner.objectives import quality_order
from ditplan.planner.search.pareto_front import ParetoFront
from ditplan.planner.space.candidate import Choice, Setting, Settings
from ditplan.planner.space.enumerate import EXHAUSTIVE_RANKS
from ditplan.profiles.configuration import PipeFusion
from ditplan.profiles.plan import Quality

RUNNER_UP = 1.5
"""Of meshes of up to `EXHAUSTIVE_RANKS` ranks all plans are priced that may take up to so many
times as long as what is better: runner-ups are run for comparison, and shown with the reason."""

LARGE_CLUSTER = 64
"""On more GPUs there are no runner-ups of this kind, and no plan is priced for memory that is less
by no more than `COARSE_MEMORY`."""

COARSE_MEMORY = 1.1


def undominated(
    choice: Choice,
    front: ParetoFront,
    bounds: LowerBounds,
    quality_of: Callable[[PipeFusion | None], Quality],
    *,
    is_large: bool,
) -> Iterator[Choice]:
    """The orders and settings of a mesh that may be better than what is known, or a runner-up, by
    what they cost at least; the most promising first, each by what `front` has when its turn comes.

    `is_large` says whether there are more than `LARGE_CLUSTER` GPUs.
    """
    mesh = choice.mesh
    slack = RUNNER_UP if mesh.size <= EXHAUSTIVE_RANKS and not is_large else 1.0
    contest = _Contest(front, bounds, quality_of, slack, COARSE_MEMORY if is_large else 1.0)
    alike: dict[OrderKey, list[tuple[str, ...]]] = {}
    for order in choice.orders:
        alike.setdefault(bounds.order_key(mesh, order), []).append(order)
    promising: list[tuple[float, int, Quality, Choice]] = []
    for key, of_order in contest.left_of(choice, alike).items():
        for settings in _equally_large(of_order):
            quality, least_bytes = quality_of(settings[0][0]), bounds.least_bytes(mesh, settings)
            if contest.is_lost(bounds.least_s(mesh, key, settings), least_bytes, quality):
                continue
            for setting in settings:
                narrowed = Choice(mesh, (setting,), tuple(alike[key]))
                least_s = bounds.least_s(mesh, key, (setting,))
                promising.append((least_s, least_bytes, quality, narrowed))
    for least_s, least_bytes, quality, narrowed in sorted(promising, key=itemgetter(0)):
        if not contest.is_lost(least_s, least_bytes, quality):
            yield narrowed


@dataclass(frozen=True)
class _Contest:
    """Plans by what they cost at least, against what is known."""

    front: ParetoFront
    bounds: LowerBounds
    quality_of: Callable[[PipeFusion | None], Quality]
    slack: float
    coarse: float

    def is_lost(self, least_s: float, least_bytes: int, quality: Quality) -> bool:
        """Whether something is as good."""
        return self.front.beats(least_s / self.slack, self.coarse * least_bytes, quality)

    def left_of(self, choice: Choice, keys: Iterable[OrderKey]) -> dict[OrderKey, Settings]:
        """A mesh's settings for each order of its axes, without those that lose all together: all
        of them, those with graphs, or those without.
        """
        mesh, left = choice.mesh, dict.fromkeys(keys, choice.settings)
        if mesh.pipefusion == 1:
            # there are few settings, whose own bounds are as quickly found
            return left
        best = min((self.quality_of(part) for part, _ in choice.settings), key=quality_order)
        for is_among in (_is_any, _has_graphs, _has_none):
            together = tuple(filter(is_among, choice.settings))
            if not (left and together):
                continue
            least_bytes = self.bounds.least_bytes(mesh, together)
            lost = {
                key
                for key in left
                if self.is_lost(self.bounds.least_s(mesh, key, together), least_bytes, best)
            }
            left = _without(left, lost, is_among)
        return left


def _without(
    left: Mapping[OrderKey, Settings],
    lost: Collection[OrderKey],
    is_among: Callable[[Setting], bool],
) -> dict[OrderKey, Settings]:
    """What is left of each order's settings where some of them lose in some orders."""
    kept = {
        key: tuple(itertools.filterfalse(is_among, settings)) if key in lost else settings
        for key, settings in left.items()
    }
    return {key: settings for key, settings in kept.items() if settings}


def _equally_large(settings: Settings) -> Iterator[Settings]:
    """Settings, those together that differ in their mode alone and need equally much memory at
    least, for which of a mode only graphs count.
    """
    for _, alike in itertools.groupby(settings, key=itemgetter(0)):
        for _, equal in itertools.groupby(alike, key=_has_graphs):
            yield tuple(equal)


def _is_any(setting: Setting) -> bool:
    return True


def _has_graphs(setting: Setting) -> bool:
    return "graph" in setting[1]


def _has_none(setting: Setting) -> bool:
    return not _has_graphs(setting)
