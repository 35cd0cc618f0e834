"""Plans of fewer GPUs than there are, on others than the first ones."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from ditplan.planner.cost.lower_bounds import LowerBounds
from ditplan.planner.network.subsets import Subsets
from ditplan.planner.search.pareto_front import ParetoFront
from ditplan.planner.search.ranking import LINKED_PARTS, SAME_SPEED, PricedCandidate
from ditplan.planner.search.seating import worth
from ditplan.planner.space.candidate import Choice, Setting
from ditplan.planner.space.placement import placements_on
from ditplan.profiles.configuration import Configuration, PipeFusion
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.plan import Quality

ANYWHERE = (None, False)
"""The key of the lower bounds that hold wherever ranks are."""

OF_LINKS = (*LINKED_PARTS, "bubbles")
"""What of a loop can take less time on other links."""


@dataclass(frozen=True)
class Elsewhere:
    """Prices meshes on other ranks than the first, as far as they may beat what is in `front`:
    plans of as many GPUs or fewer.
    """

    subsets: Subsets
    front: ParetoFront
    bounds: LowerBounds
    quality_of: Callable[[PipeFusion | None], Quality]
    price: Callable[[Configuration], PricedCandidate]

    def priced(
        self, choices: Iterable[Choice], on_first: Iterable[PricedCandidate]
    ) -> Iterator[PricedCandidate]:
        """Those of meshes of one size that are better than on the first ranks, by more than
        `SAME_SPEED`.

        A mesh is priced on all of the ranks in question with the setting that is fastest on the
        first ones; on the best of them also with its others.
        """
        fastest: dict[Mesh, PricedCandidate] = {}
        for one in sorted(on_first, key=worth):
            fastest.setdefault(one.configuration.mesh, one)
        for choice in choices:
            known = fastest.get(choice.mesh)
            if known and self._is_beaten(known):
                continue
            if not (found := self.subsets.of_size(choice.mesh.size)):
                return
            left = [setting for setting in choice.settings if self._may_lead(choice, setting)]
            if not left:
                continue
            yield from self._on(found, choice, left, known)

    def _on(
        self,
        found: Sequence[tuple[int, ...]],
        choice: Choice,
        settings: Sequence[Setting],
        known: PricedCandidate | None,
    ) -> Iterator[PricedCandidate]:
        mesh, topology = choice.mesh, self.subsets.topology
        placed = placements_on(mesh, topology, choice.orders, found)
        if not placed:
            return
        setting = min(settings, key=lambda one: self.bounds.least_s(mesh, ANYWHERE, (one,)))
        if known:
            setting = _setting_of(known, settings) or setting
        best = min((self._price(mesh, seat, setting) for seat in placed), key=worth)
        if known and best.prediction.latency_s * SAME_SPEED > known.prediction.latency_s:
            return
        yield best
        seat = (best.configuration.order, best.configuration.placement)
        for other in settings:
            if other != setting and self._may_lead(choice, other):
                yield self._price(mesh, seat, other)

    def _price(
        self, mesh: Mesh, seat: tuple[tuple[str, ...], tuple[int, ...]], setting: Setting
    ) -> PricedCandidate:
        (order, placement), (part, mode) = seat, setting
        return self.price(Configuration(mesh, placement, mode, order, part))

    def _may_lead(self, choice: Choice, setting: Setting) -> bool:
        least_s = self.bounds.least_s(choice.mesh, ANYWHERE, (setting,))
        least_bytes = self.bounds.least_bytes(choice.mesh, (setting,))
        return not self.front.beats(least_s, least_bytes, self.quality_of(setting[0]))

    def _is_beaten(self, known: PricedCandidate) -> bool:
        """Whether a plan would be no better than others if links took no time."""
        prediction = known.prediction
        linked_s = math.fsum(prediction.parts.get(part, 0.0) for part in OF_LINKS)
        least_s = prediction.latency_s - linked_s
        return self.front.beats(least_s, prediction.memory_bytes, known.quality)


def _setting_of(known: PricedCandidate, settings: Sequence[Setting]) -> Setting | None:
    """The one of some settings that a plan has, whatever blocks its stages have."""
    part = known.configuration.pipefusion
    patching = (part.patches, part.warmup_steps) if part else None
    for setting in settings:
        other = setting[0]
        theirs = (other.patches, other.warmup_steps) if other else None
        if setting[1] == known.configuration.mode and theirs == patching:
            return setting
    return None
