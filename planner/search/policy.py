"""How plans are measured, and what one run says."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ditplan.planner.search.sampler_names import SamplerName
from ditplan.profiles.plan import ExecutionPlan


@dataclass(frozen=True)
class RunResult:
    """One real run of a plan's denoising loop."""

    latency_s: float
    memory_bytes: int | None = None


@dataclass(frozen=True)
class MeasurementPolicy:
    """How to measure: `top` candidates and the baseline, each `rounds` times, one of each in turn.

    The `sampler` chooses them. The planner's own takes those predicted fastest first and later ones
    that what was measured speaks for; Optuna's know nothing of predictions and run the baseline
    first. What is clearly slower gets fewer runs, what can't be told apart more. `budget_s` ends
    it: nothing new is started then, once one candidate was run. `journal` is the file of the Optuna
    study; a search that finds its own study in there goes on with it. A run that loses its ranks is
    made once more, on new ones, and its plan fails if it loses those too; other errors fail a plan
    at once. A plan to `resume` is run first, then only what could now be faster than it.
    """

    measure: Callable[[ExecutionPlan], RunResult]
    top: int = 3
    rounds: int = 3
    budget_s: float | None = None
    journal: Path | None = None
    sampler: SamplerName = "planner"
    resume: ExecutionPlan | None = None
