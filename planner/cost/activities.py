"""What a rank does in a call of the transformer: computing, exchanges, and a ring's attention.

The first two are tuples, as very many are made.
"""

from dataclasses import dataclass
from typing import NamedTuple

from ditplan.planner.cost.roofline import Timed
from ditplan.planner.network.groups import Groups
from ditplan.profiles.cluster import Operation


class Computation(NamedTuple):
    """What each rank does by itself, for which part of the price."""

    part: str
    timed: Timed


class CollectiveCost(NamedTuple):
    """An operation that all groups of ranks make at once, `rank_bytes` put in by each rank."""

    part: str
    operation: Operation
    rank_bytes: float
    groups: Groups
    timed: Timed


@dataclass(frozen=True)
class RingAttention:
    """Attention over a ring's blocks of keys, of which each travels while the one before is
    attended to and merged by lse; the first block needs no merging.

    `stale` is the attention to PipeFusion's older keys, behind which the first block travels too;
    they lie in so many pieces on average. Where nothing `is_hidden`, ranks send first.
    """

    blocks: int
    attend: Timed
    merge: Timed
    sent: CollectiveCost
    is_hidden: bool
    stale: Timed
    stale_pieces: float

    @property
    def merges(self) -> float:
        """How often something is merged into what came before, on average."""
        return self.blocks + self.stale_pieces - 1

    @property
    def first_sent_s(self) -> float:
        """Seconds of the first transfer that are waited for."""
        merged_s = self.stale_pieces * self.merge.seconds
        return self._seen_s(self.attend.seconds + self.stale.seconds + merged_s)

    @property
    def later_sent_s(self) -> float:
        """Seconds of each later one, which begins after a merge and is hidden by one more."""
        return self._seen_s(self.attend.seconds + self.merge.seconds)

    @property
    def merged_s(self) -> float:
        """Seconds of all merging."""
        return self.merges * self.merge.seconds

    @property
    def waited_s(self) -> float:
        """Seconds of all transfers that are waited for."""
        return self.first_sent_s + (self.blocks - 2) * self.later_sent_s

    def _seen_s(self, behind_s: float) -> float:
        return max(0.0, self.sent.timed.seconds - (behind_s if self.is_hidden else 0.0))


Activity = Computation | CollectiveCost | RingAttention


def seconds_of(activity: Activity) -> float:
    """What an activity takes of a rank's time."""
    if not isinstance(activity, RingAttention):
        return activity.timed.seconds
    attended_s = activity.blocks * activity.attend.seconds + activity.stale.seconds
    return attended_s + activity.merged_s + activity.waited_s
