"""A plan put in force by the backend that it is for."""

from typing import Any

from ditplan.profiles.backend import Prepared
from ditplan.profiles.backends import find_backend
from ditplan.profiles.capabilities import Capabilities, require_mode, require_ranks_to_run_in
from ditplan.profiles.cluster import DeviceKind
from ditplan.profiles.errors import InputError
from ditplan.profiles.plan import ExecutionPlan
from ditplan.runtime.admission.fit import require_alike
from ditplan.runtime.admission.neighbours import require_unwrapped
from ditplan.runtime.groups import RankContext
from ditplan.runtime.models.inspection import config_digest, plain_config, usual_config


def prepare(pipeline: Any, plan: ExecutionPlan, context: RankContext) -> Prepared:
    """Puts a plan in force on a pipeline; every rank of the world calls it.

    Raises:
        InputError: the same on every rank: there is no such backend, it doesn't run in ranks or on
            this kind of device, it hasn't what the plan has, or the plan is for another model or
            more ranks; or the backend refuses it.
    """

    def check() -> None:
        capabilities = find_backend(plan.backend).capabilities
        _require_claimed(plan, capabilities, context)
        if context.world_size < plan.mesh.size:
            plan.require_ranks(context.world_size)
        model = pipeline.transformer
        require_unwrapped(model)
        found, usual = plain_config(model.config), usual_config(type(model))
        plan.require_model(type(model).__name__, config_digest(model.config), found, usual)

    require_alike(plan, context, check)
    return find_backend(plan.backend).plugin.prepare(pipeline, plan, context)


def _require_claimed(plan: ExecutionPlan, capabilities: Capabilities, context: RankContext) -> None:
    """Refuses what a backend doesn't claim.

    Raises:
        InputError: says what it has.
    """
    require_ranks_to_run_in(capabilities)
    kind: DeviceKind = "cpu" if context.device.type == "cpu" else "cuda"
    require_mode(capabilities, plan.configuration.mode, kind)
    if why := capabilities.why_unsupported(plan.configuration, plan.model):
        raise InputError(why)
