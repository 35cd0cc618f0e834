"""A plan put in force by the backend that it is for."""

from typing import Any

from ditplan.profiles.backend import Prepared
from ditplan.profiles.backends import find_backend
from ditplan.profiles.capabilities import require_mode, require_ranks_to_run_in
from ditplan.profiles.cluster import DeviceKind
from ditplan.profiles.plan import ExecutionPlan
from ditplan.runtime.groups import RankContext


def prepare(pipeline: Any, plan: ExecutionPlan, context: RankContext) -> Prepared:
    """Puts a plan in force on a pipeline; every rank of the world calls it.

    Raises:
        InputError: there is no such backend here, it doesn't run in ranks or on this kind of
            device, or it refuses the plan.
    """
    backend = find_backend(plan.backend)
    require_ranks_to_run_in(backend.capabilities)
    kind: DeviceKind = "cpu" if context.device.type == "cpu" else "cuda"
    require_mode(backend.capabilities, plan.configuration.mode, kind)
    return backend.plugin.prepare(pipeline, plan, context)
