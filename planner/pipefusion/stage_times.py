"""What stages of PipeFusion have to do, and how long all of it takes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ditplan.planner.cost.breakdown import CostBreakdown
from ditplan.planner.cost.step import Step
from ditplan.planner.pipefusion.schedule import Durations


@dataclass(frozen=True)
class Piece:
    """What it costs to run a patch, or the whole sequence, whatever the stages: one block of each
    run, what is around them, putting the output together. `total_s` are a block's seconds.
    """

    step: Step
    blocks: tuple[CostBreakdown, ...]
    total_s: tuple[float, ...]
    outside: CostBreakdown
    gather: CostBreakdown
    passes: CostBreakdown
    onward_bytes: int
    back_bytes: int
    is_patch: bool


@dataclass(frozen=True)
class Pieces:
    """All that the ranks of a stage run: the whole sequence, and patches of each size, in `kinds`
    with how often they come by.
    """

    whole: Piece
    kinds: tuple[tuple[Piece, int], ...]


class StageBlocks(NamedTuple):
    """A stage's blocks of each run, each time that a patch comes by, and whether predictions end
    there.
    """

    visits: tuple[tuple[int, ...], ...]
    predicts: bool

    def predicts_at(self, visit: int) -> bool:
        """Whether a piece ends with its prediction when it comes by for that time."""
        return self.predicts and visit == len(self.visits) - 1


@dataclass(frozen=True)
class LoopTimes:
    """Seconds of all that happens in a loop.

    A warm-up step is the whole sequence in each stage (`warm_s`), with the folded schedule also on
    its way back (`warm_back_s`), with a transfer to the next one (`warm_hop_s`), its prediction
    told to all stages, the exchange of passes, and the scheduler's `warm_scheduler_s` on the first
    stage. That one takes `setup_s` for the patches' calls, and then `steps` of patches follow.
    `between_s` of a patch is the exchange of its passes and the scheduler's step. `agreement_s`
    ends the loop.
    """

    warmup_steps: int
    warm_s: Sequence[float]
    warm_back_s: Sequence[float]
    warm_hop_s: list[float]
    told_s: float
    warm_passes_s: float
    warm_scheduler_s: float
    setup_s: float
    steps: int
    patched: Durations
    scheduler_s: float
    agreement_s: float
    sending_computes: bool

    @property
    def warm_sends_s(self) -> float:
        """The transfers of a warm-up step, in which nothing else happens."""
        ways = 2 if self.warm_back_s else 1
        return math.fsum((*self.warm_hop_s * ways, self.told_s))

    @property
    def warm_of_stages_s(self) -> list[float]:
        """What each stage computes in a warm-up step."""
        found = list(self.warm_s)
        for stage, seconds in enumerate(self.warm_back_s):
            found[stage] += seconds
        return found
