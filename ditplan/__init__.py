"""What a production job imports: load a plan and put it in force on a diffusers pipeline."""

from typing import TYPE_CHECKING, Any

from ditplan.profiles.plan import ExecutionPlan

if TYPE_CHECKING:
    from contextlib import ExitStack

__all__ = ["ExecutionPlan", "parallelize"]


def parallelize(pipeline: Any, plan: ExecutionPlan) -> "ExitStack":
    """Puts a plan in force on a diffusers pipeline, in a job started by torchrun.

    Every rank calls it with the same plan; then every rank calls the pipeline with the same
    arguments and seed, which is checked. Closing the result gives the pipeline back as it was.

    Raises:
        InputError: the same on every rank: the plan doesn't fit the pipeline, the number of ranks
            or the devices, or the ranks don't have the same plan or weights.
    """
    from contextlib import ExitStack

    from ditplan.runtime.admission.fit import admitted
    from ditplan.runtime.native import parallelize as parallelize_native

    context = admitted(pipeline, plan)
    with ExitStack() as undo:
        undo.callback(context.groups.close)
        undo.enter_context(parallelize_native(pipeline, plan, context))
        return undo.pop_all()
