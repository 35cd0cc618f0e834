"""A denoising step that is being priced: where its ranks are, and what they have to do."""

from collections.abc import Callable
from dataclasses import dataclass

from ditplan.planner.compute import Timed
from ditplan.planner.crew import Load
from ditplan.planner.groups import Groups
from ditplan.planner.ledger import Ledger
from ditplan.planner.memo import Memo
from ditplan.planner.share import Share
from ditplan.planner.space import Candidate
from ditplan.profiles.cluster import Device
from ditplan.profiles.workload import Workload


class Place:
    """Where a mesh's axes lie on ranks: its groups, and what was booked and timed there already."""

    def __init__(
        self, groups_of: Callable[[tuple[str, ...]], Groups], placement: tuple[int, ...] = ()
    ) -> None:
        self.placement, self._groups_of = placement, groups_of
        self._groups: Memo[tuple[str, ...], Groups] = Memo()
        self.booked: Memo[tuple[object, ...], Ledger] = Memo()
        self.timed: Memo[tuple[object, ...], Timed] = Memo()

    def groups(self, axes: tuple[str, ...]) -> Groups:
        """The groups of ranks along axes."""
        if axes not in self._groups:
            self._groups[axes] = self._groups_of(axes)
        return self._groups[axes]


@dataclass(frozen=True)
class Step:
    """A denoising step that is being priced: who does it where, and the busiest rank's share.

    Where ranks that wait for each other have unlike shares or devices, `loads` are theirs, `share`
    is the most that any of them has, and `device` the slowest.
    """

    candidate: Candidate
    workload: Workload
    share: Share
    device: Device
    place: Place
    loads: tuple[Load, ...] = ()
