"""Whether what a plan's calls take is still what the plan says, decided from seconds alone."""

import json
import statistics
from collections import deque
from dataclasses import asdict, dataclass
from typing import Literal

from ditplan.profiles.evidence import interval_of
from ditplan.profiles.plan import ExecutionPlan

Stage = Literal["encoding", "denoising", "decoding"]
"""Of a pipeline's call: until the transformer is first called; a step; what comes after the last.
"""

STEPS_SEEN, CALLS_SEEN = 15, 5
"""How many of the last steps, or calls, are looked at: more than half of them beyond the bound are
drift, so it is reported after 8 slow steps, and what disturbs some of them never is."""

LEARNED_SLACK = 1.5
"""A plan says nothing of encoders and VAE alone: beyond so many times what the first calls took."""


@dataclass(frozen=True)
class DriftReport:
    """A stage that began to take longer than the plan says, or no longer does (`has_ended`).

    `seconds` is the median of the last ones, `expected_s` the plan's, `most_s` the bound; `seen` is
    how many there were in all.
    """

    model: str
    plan: str
    evidence: str
    rank: int
    stage: Stage
    has_ended: bool
    seconds: float
    expected_s: float
    most_s: float
    seen: int

    def to_json(self) -> str:
        """One line for a log."""
        return json.dumps({"event": "ditplan.drift", **asdict(self)})

    def __str__(self) -> str:
        unit = "a step" if self.stage == "denoising" else f"{self.stage} of a call"
        now = f"{unit} takes {self.seconds:.4g} s on rank {self.rank}"
        if self.has_ended:
            return f"{now} again, at most {self.most_s:.4g} s as {self.plan} should"
        times = self.seconds / self.expected_s
        return (
            f"{now}, {times:.3g} times the {self.expected_s:.4g} s of {self.plan} (at most "
            f"{self.most_s:.4g} s): a host, device or link is slower than when it was tuned, or "
            "shared; measure the plan anew, or tune again"
        )


class StageWatch:
    """The last seconds of one stage against a bound. Without one, `most_s` of None, the first ones
    say what is usual.
    """

    def __init__(self, window: int, expected_s: float | None, most_s: float | None) -> None:
        self._recent = deque[float](maxlen=window)
        self.expected_s, self.most_s = expected_s, most_s
        self.seen, self.is_drifting = 0, False

    @property
    def median_s(self) -> float | None:
        """Of the last ones; None before there is any."""
        return statistics.median(self._recent) if self._recent else None

    def add(self, seconds: float) -> bool:
        """Notes one; says whether drift has begun or ended with it."""
        self.seen += 1
        self._recent.append(seconds)
        window = self._recent.maxlen or 1
        if self.most_s is None:
            if len(self._recent) == window:
                self.expected_s = statistics.median(self._recent)
                self.most_s = LEARNED_SLACK * self.expected_s
                self._recent.clear()
            return False
        beyond = sum(one > self.most_s for one in self._recent)
        # not at once when it is half and half: it would begin and end again and again
        is_beyond = beyond > window // 4 if self.is_drifting else beyond > window // 2
        has_changed = is_beyond != self.is_drifting
        self.is_drifting = is_beyond
        return has_changed


@dataclass(frozen=True)
class StepBounds:
    """What a step of a plan takes, and at most, in seconds: None where the plan has no numbers.

    The first `skipped` steps of a call aren't like the others; `together` steps in a row are taken
    as one, by their mean, since a step cache computes in some of them alone.
    """

    expected_s: float | None
    most_s: float | None
    skipped: int
    together: int

    @classmethod
    def of(cls, plan: ExecutionPlan) -> "StepBounds":
        """Those of a plan."""
        known = plan.measurement or plan.prediction
        interval_s, steps = interval_of(plan), plan.workload.steps
        part, cache = plan.configuration.pipefusion, plan.configuration.step_cache
        return cls(
            expected_s=known.latency_s / steps if known else None,
            most_s=interval_s[1] / steps if interval_s else None,
            skipped=1 + (part.warmup_steps if part else 0) + (cache.full_steps if cache else 0),
            together=cache.interval if cache else 1,
        )


def watches_of(bounds: StepBounds) -> dict[Stage, StageWatch]:
    """A watch for each stage."""
    steps = StageWatch(STEPS_SEEN, bounds.expected_s, bounds.most_s)
    return {"denoising": steps, **watches_around_steps()}


def watches_around_steps() -> dict[Stage, StageWatch]:
    """For what is done before and after the steps, of which the first calls say what is usual."""
    return {
        "encoding": StageWatch(CALLS_SEEN, None, None),
        "decoding": StageWatch(CALLS_SEEN, None, None),
    }
