"""Which configurations of a mesh are worth a price, by what plans cost at least."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ditplan.planner.cost.lower_bounds import LowerBounds, ParetoFront, worth_of
from ditplan.planner.space.candidate import Choice
from ditplan.planner.space.enumerate import EXHAUSTIVE_RANKS
from ditplan.profiles.configuration import Configuration, PipeFusion
from ditplan.profiles.model import Mode
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
    floors: LowerBounds,
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

    def is_beaten(least_s: float, of: _EquallyLarge) -> bool:
        return front.beats(least_s / slack, coarse * of.least_bytes, of.quality)

    alike: dict[object, list[tuple[str, ...]]] = {}
    for order in choice.orders:
        alike.setdefault(floors.order_key(mesh, order), []).append(order)
    least = _least(choice, floors, quality_of)
    patches = [part.patches for part, _ in choice.settings if part]
    groups: list[_EquallyLarge] = []
    promising: list[tuple[float, _EquallyLarge, Choice]] = []
    for orders in alike.values():
        first = Configuration(mesh, (), least.modes[0], orders[0], least.part)
        if patches and is_beaten(floors.of_settings(first, patches), least):
            continue
        groups = groups or list(_equally_large(choice, floors, quality_of))
        for group in groups:
            tried = [Configuration(mesh, (), mode, orders[0], group.part) for mode in group.modes]
            if is_beaten(floors.of_modes(tried), group):
                continue
            for candidate in tried:
                one = Choice(mesh, ((group.part, candidate.mode),), tuple(orders))
                promising.append((floors.least_s(candidate), group, one))
    for least_s, group, one in sorted(promising, key=lambda found: found[0]):
        if not is_beaten(least_s, group):
            yield one


@dataclass(frozen=True)
class _EquallyLarge:
    """Settings of a mesh that differ in their mode alone and need equally much memory at least."""

    part: PipeFusion | None
    modes: tuple[Mode, ...]
    least_bytes: int
    quality: Quality


def _least(
    choice: Choice, floors: LowerBounds, quality_of: Callable[[Configuration], Quality]
) -> _EquallyLarge:
    """What any setting of a mesh needs at least, with the best quality of all: without graphs, and
    with few of them where each patch has its own, it needs least memory.
    """
    part, mode = min(
        choice.settings, key=lambda one: ("graph" in one[1], one[0].patches if one[0] else 0)
    )
    parts = dict.fromkeys(part for part, _ in choice.settings)
    best = min(
        (quality_of(Configuration(choice.mesh, (), mode, pipefusion=p)) for p in parts),
        key=worth_of,
    )
    candidate = Configuration(choice.mesh, (), mode, pipefusion=part)
    return _EquallyLarge(part, (mode,), floors.least_bytes(candidate), best)


def _equally_large(
    choice: Choice, floors: LowerBounds, quality_of: Callable[[Configuration], Quality]
) -> Iterator[_EquallyLarge]:
    for part, settings in itertools.groupby(choice.settings, key=lambda setting: setting[0]):
        tried = [Configuration(choice.mesh, (), mode, pipefusion=part) for _, mode in settings]
        quality = quality_of(tried[0])
        for least_bytes, group in itertools.groupby(tried, key=floors.least_bytes):
            yield _EquallyLarge(part, tuple(one.mode for one in group), least_bytes, quality)
