"""Finds the fastest parallel plan for a diffusion transformer, and runs it.

A production job loads a plan and puts it in force: `load`, `parallelize`. A notebook makes one:
`plan`, `plan_book`, `simulate`. Whoever only runs plans imports nothing of the planner.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditplan.profiles.book import PlanBook
from ditplan.profiles.plan import ExecutionPlan

if TYPE_CHECKING:
    from contextlib import ExitStack

    from ditplan.planning import BookResult, PlanResult, SimulateResult, plan, plan_book, simulate
    from ditplan.runtime.profiling.live_steps import LiveSteps, OnDrift

__version__ = "0.1.0"

__all__ = [
    "BookResult",
    "ExecutionPlan",
    "PlanBook",
    "PlanResult",
    "SimulateResult",
    "live_steps",
    "load",
    "parallelize",
    "plan",
    "plan_book",
    "simulate",
]

PLANNING = {"BookResult", "PlanResult", "SimulateResult", "plan", "plan_book", "simulate"}
"""What comes from `ditplan.planning`, which is imported when it is first asked for."""


def load(path: Path | str) -> ExecutionPlan:
    """Reads a plan from its file; books of plans are read with `PlanBook.load`.

    Raises:
        InputError: no such file, or no plan; names the file, the field and the remedy.
    """
    return ExecutionPlan.load(path)


def parallelize(
    pipeline: Any, plan: ExecutionPlan, *, on_drift: "OnDrift | None" = None
) -> "ExitStack":
    """Puts a plan in force on a diffusers pipeline, in a job started by torchrun.

    Every rank calls it with the same plan; then every rank calls the pipeline with the same
    arguments and seed, which is checked. Closing the result gives the pipeline back as it was.
    Calls that take longer than the plan says are warned of once, logged, and told to `on_drift`.

    Raises:
        InputError: the same on every rank: the plan doesn't fit the pipeline, the number of ranks
            or the devices, or the ranks don't have the same plan or weights.
    """
    from contextlib import ExitStack

    from ditplan.runtime.admission.fit import admitted
    from ditplan.runtime.native import parallelize as parallelize_native
    from ditplan.runtime.profiling.live_steps import LiveSteps, keep_live_steps

    context = admitted(pipeline, plan)
    with ExitStack() as undo:
        undo.callback(context.groups.close)
        live = LiveSteps(pipeline, plan, context, on_drift)
        undo.enter_context(parallelize_native(pipeline, plan, context, live.watching))
        if not plan.changes_nothing:
            keep_live_steps(live, pipeline.transformer, undo)
        return undo.pop_all()


def live_steps(pipeline: Any) -> "LiveSteps | None":
    """What watches the calls of a pipeline under a plan, with its Prometheus text; None where none
    is in force, or one of one rank that changes nothing.
    """
    from ditplan.runtime.profiling.live_steps import live_steps_of

    return live_steps_of(pipeline)


def __getattr__(name: str) -> Any:
    if name in PLANNING:
        return getattr(import_module("ditplan.planning"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *PLANNING})
