"""Which configurations of a mesh are worth a price, by what plans cost at least."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from operator import itemgetter

from ditplan.planner.cost.lower_bounds import Bound, LowerBounds
from ditplan.planner.objectives import quality_order
from ditplan.planner.search.pareto_front import ParetoFront
from ditplan.planner.space.candidate import Choice, Setting
from ditplan.planner.space.enumerate import EXHAUSTIVE_RANKS
from ditplan.profiles.configuration import Configuration
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
    quality_of: Callable[[Configuration], Quality],
    *,
    is_large: bool,
) -> Iterator[Choice]:
    """The orders and settings of a mesh that may be better than what is known, or a runner-up, by
    what they cost at least; the most promising first, each by what `front` has when its turn comes.

    `is_large` says whether there are more than `LARGE_CLUSTER` GPUs.
    """
    mesh = choice.mesh
    slack = RUNNER_UP if mesh.size <= EXHAUSTIVE_RANKS and not is_large else 1.0
    coarse = COARSE_MEMORY if is_large else 1.0

    def is_beaten(least: Bound, quality: Quality) -> bool:
        return front.beats(least.seconds / slack, coarse * least.bytes, quality)

    alike: dict[object, list[tuple[str, ...]]] = {}
    for order in choice.orders:
        alike.setdefault(bounds.order_key(mesh, order), []).append(order)
    equally_large = list(_equally_large(choice, quality_of))
    best = min((quality for quality, _ in equally_large), key=quality_order)
    promising: list[tuple[Bound, Quality, Choice]] = []
    for orders in alike.values():
        bound = partial(bounds.bound, mesh, orders[0])
        # without stages there are few settings, whose own bounds are as quickly found
        if mesh.pipefusion > 1 and is_beaten(bound(choice.settings), best):
            continue
        for quality, settings in equally_large:
            if is_beaten(bound(settings), quality):
                continue
            for setting in settings:
                narrowed = Choice(mesh, (setting,), tuple(orders))
                promising.append((bound((setting,)), quality, narrowed))
    for least, quality, narrowed in sorted(promising, key=lambda entry: entry[0].seconds):
        if not is_beaten(least, quality):
            yield narrowed


def _equally_large(
    choice: Choice, quality_of: Callable[[Configuration], Quality]
) -> Iterator[tuple[Quality, tuple[Setting, ...]]]:
    """A mesh's settings, those together that differ in their mode alone and need equally much
    memory at least, for which of a mode only graphs count; with their quality.
    """
    for pipefusion, alike in itertools.groupby(choice.settings, key=itemgetter(0)):
        quality = quality_of(Configuration(choice.mesh, (), pipefusion=pipefusion))
        for _, settings in itertools.groupby(alike, key=lambda setting: "graph" in setting[1]):
            yield quality, tuple(settings)
