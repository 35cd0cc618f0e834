"""Candidates that differ in which unlike devices sit where: what is priced of them, and kept."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from ditplan.planner.search.ranking import PricedCandidate, sortable_s
from ditplan.planner.space.candidate import Choice, Space
from ditplan.planner.space.placement import MOST_SORTED_KINDS
from ditplan.profiles.configuration import Configuration

Orders = tuple[tuple[str, ...], ...]
Seats = dict[tuple[tuple[int, ...], Orders], tuple[tuple[str, ...], tuple[int, ...]]]
"""The order and placement to take, by a mesh's degrees and the orders to choose from."""


def worth(ranked: PricedCandidate) -> tuple[bool, float]:
    """What fits comes first, then what is fast."""
    return ranked.too_big is not None, sortable_s(ranked.prediction.latency_s)


def priced_on_seats(
    space: Space, choice: Choice, seats: Seats, price: Callable[[Configuration], PricedCandidate]
) -> list[PricedCandidate]:
    """A choice's settings on all placements.

    With many kinds of device these are too many: all are tried with a mesh's first setting, and the
    others are priced on the best of them alone, which `seats` remembers.
    """
    if len(set(space.topology.device_names)) <= MOST_SORTED_KINDS:
        return [price(candidate) for candidate in space.placed(choice)]
    key, found = (choice.mesh.degrees, choice.orders), list[PricedCandidate]()
    for part, mode in choice.settings:
        if key in seats:
            order, placement = seats[key]
            found.append(price(Configuration(choice.mesh, placement, mode, order, part)))
            continue
        first = replace(choice, settings=((part, mode),))
        priced = [price(candidate) for candidate in space.placed(first)]
        best = min(priced, key=worth).configuration
        seats[key] = best.order, best.placement
        found += priced
    return found


def best_seated(found: Iterable[PricedCandidate]) -> list[PricedCandidate]:
    """Of candidates that differ only in which devices sit where, the fastest that fits."""
    best: dict[tuple[object, ...], PricedCandidate] = {}
    for ranked in found:
        one = ranked.configuration
        part = (one.pipefusion.patches, one.pipefusion.warmup_steps) if one.pipefusion else None
        key = (one.mesh.degrees, one.order, one.mode, part)
        best[key] = min(best.get(key, ranked), ranked, key=worth)
    return list(best.values())
