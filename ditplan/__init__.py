"""Finds the fastest parallel plan for a diffusion transformer, and runs it.

A production job loads a plan, finds its place and puts the plan in force: `load`, `attach`,
`parallelize`, `warm_up`, `counters`; or a book of plans: `serve`. A notebook makes one:
`plan`, `plan_book`, `simulate`. Whoever only runs plans imports nothing of the planner.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ditplan.planning import BookResult, PlanResult, SimulateResult, plan, plan_book, simulate
    from ditplan.profiles.book import PlanBook
    from ditplan.profiles.plan import ExecutionPlan
    from ditplan.runtime.admission.fit import Attached
    from ditplan.runtime.models.warm_up import Size
    from ditplan.runtime.profiling.live_steps import LiveSteps, OnDrift
    from ditplan.serving import BookServer, Counters, PipelineUnderPlan

__version__ = "0.1.0"

__all__ = [
    "BookResult",
    "ExecutionPlan",
    "PlanBook",
    "PlanResult",
    "SimulateResult",
    "attach",
    "counters",
    "live_steps",
    "load",
    "parallelize",
    "plan",
    "plan_book",
    "serve",
    "simulate",
    "warm_up",
]

LATER = {
    "ExecutionPlan": "ditplan.profiles.plan",
    "PlanBook": "ditplan.profiles.book",
    "BookResult": "ditplan.planning",
    "PlanResult": "ditplan.planning",
    "SimulateResult": "ditplan.planning",
    "plan": "ditplan.planning",
    "plan_book": "ditplan.planning",
    "simulate": "ditplan.planning",
}
"""What is imported when it is first asked for, and from where."""


def load(path: Path | str) -> "ExecutionPlan":
    """Reads a plan from its file; books of plans are read with `PlanBook.load`.

    Raises:
        InputError: no such file, or no plan; names the file, the field and the remedy.
    """
    from ditplan.profiles.plan import ExecutionPlan

    return ExecutionPlan.load(path)


def attach(plan: "ExecutionPlan") -> "Attached":
    """Finds this process' place in a job started by torchrun, srun, Open MPI's mpirun or MPICH's
    mpiexec: its rank, its device, and the plan for the job's ranks.

    Every rank calls it with the same plan. Ranks tell each other host and GPU, and each coordinate
    of the mesh goes to the rank that sits where the plan says, in whatever order ranks were
    started. But for torchrun, MASTER_ADDR and MASTER_PORT say where ranks meet.

    Raises:
        InputError: the same on every rank: the job has other ranks or devices than the plan.
    """
    from ditplan.runtime.admission.fit import attached

    return attached(plan)


def parallelize(
    pipeline: Any, plan: "ExecutionPlan", *, on_drift: "OnDrift | None" = None
) -> "PipelineUnderPlan":
    """Puts a plan in force on a diffusers pipeline, in a job that a launcher started.

    Every rank calls it with the same plan, which is placed as `attach` says; then every rank calls
    the pipeline, or what this returns, with the same arguments and seed, which is checked. Closing
    the result, or the end of a `with`, gives the pipeline back as it was. Calls that take longer
    than the plan says are warned of once, logged, and told to `on_drift`.

    Raises:
        InputError: the same on every rank: the plan doesn't fit the pipeline, the number of ranks
            or the devices, or the ranks don't have the same plan or weights.
    """
    from ditplan.serving import under_plan

    return under_plan(pipeline, plan, on_drift)


def warm_up(
    pipeline: Any, plan: "ExecutionPlan", sizes: "Sequence[Size] | None" = None
) -> "Counters":
    """Has all compiled and captured that requests will ask for; gives how much that was.

    `plan` is in force on the pipeline. `sizes` are those of pictures, (height, width), or of
    videos, (height, width, frames), each with every size of text that the plan serves; the plan's
    own size alone if None. Every rank calls it. Afterwards nothing is compiled in a request of
    these sizes with the plan's batch and guidance: `counters` stays as it is.

    Raises:
        InputError: a size that the model can't do, or no plan in force.
    """
    from ditplan.serving import warm_up as warmed_up

    return warmed_up(pipeline, plan, sizes)


def counters(pipeline: Any) -> "Counters":
    """How much was compiled and captured for the pipeline under a plan in this process so far."""
    from ditplan.serving import counters as counted

    return counted(pipeline)


def serve(pipeline: Any, book: "PlanBook") -> "BookServer":
    """A pipeline that serves requests by the plans of a book, in a job started by torchrun.

    Every rank calls it with the same book, and asks it for the same: `server.request(height=...,
    width=..., steps=...)` gives the pipeline under the plan for a request. All plans are for as
    many ranks as there are.

    Raises:
        InputError: as `parallelize`, for any plan of the book.
    """
    from ditplan.serving import served

    return served(pipeline, book)


def live_steps(pipeline: Any) -> "LiveSteps | None":
    """What watches the calls of a pipeline under a plan, with its Prometheus text; None where none
    is in force, or one of one rank that changes nothing.
    """
    from ditplan.runtime.profiling.live_steps import live_steps_of

    return live_steps_of(pipeline)


def __getattr__(name: str) -> Any:
    if name in LATER:
        return getattr(import_module(LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *LATER})
