"""A denoising step that is being priced: where its ranks are, and what they have to do."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from ditplan.planner.cost.breakdown import CostBreakdown
from ditplan.planner.cost.mixed_devices import Load
from ditplan.planner.cost.roofline import Timed
from ditplan.planner.cost.share import RankShard
from ditplan.planner.memo import Memo
from ditplan.planner.network.groups import Groups
from ditplan.profiles.cluster import Device
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.workload import Dtype, Workload


class Booked(NamedTuple):
    """What a call of the transformer takes, not to be changed: one block of each run with its
    exchanges, what is in no block, the output's tokens being put together again, and the exchange
    of the samples' outputs.
    """

    blocks: tuple[CostBreakdown, ...]
    outside: CostBreakdown
    gather: CostBreakdown
    passes: CostBreakdown


class Place:
    """Where a mesh's axes lie on ranks: its groups, and what was booked and timed there already."""

    def __init__(self, groups_of: Callable[[tuple[str, ...]], Groups]) -> None:
        self._groups_of = groups_of
        self._groups: Memo[tuple[str, ...], Groups] = Memo()
        self.booked: Memo[tuple[object, ...], Booked] = Memo()
        self.outputs: Memo[tuple[RankShard, Dtype], tuple[CostBreakdown, CostBreakdown]] = Memo()
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

    configuration: Configuration
    workload: Workload
    share: RankShard
    device: Device
    place: Place
    loads: tuple[Load, ...] = ()
