"""What a production job imports: load a plan and put it in force on a diffusers pipeline."""

from typing import TYPE_CHECKING, Any

from ditplan.profiles.plan import ExecutionPlan

if TYPE_CHECKING:
    from contextlib import ExitStack

__all__ = ["ExecutionPlan", "parallelize"]


def parallelize(pipeline: Any, plan: ExecutionPlan) -> "ExitStack":
    """Puts a plan in force on a diffusers pipeline, in a job started by torchrun.

    Every rank calls it with the same plan; then every rank calls the pipeline with the same
    arguments and seed. Closing the result gives the pipeline back as it was.

    Raises:
        InputError: the plan doesn't fit the pipeline, the number of ranks or the devices.
    """
    from ditplan.runtime.admission import require_fit
    from ditplan.runtime.native import parallelize as parallelize_native
    from ditplan.runtime.ranks.pool import attach_from_torchrun

    context = attach_from_torchrun()
    plan.require_ranks(context.world_size)
    require_fit(plan, context)
    return parallelize_native(pipeline, plan, context)
