"""Reads plans of schema 1, in which a configuration's parts lay in the plan and in `execution`."""

import itertools
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from ditplan.profiles.mesh import AXES, Mesh, axis_orders, placement_of

IN_EXECUTION = ("mode", "attention", "ring", "weights")
IN_PLAN = ("mesh", "placement", "token_shares", "pipefusion", "step_cache")
WITHOUT_A_CHOICE = {"quantization": None, "offload": None, "vae": "first-rank"}
"""Fields that could say one thing alone."""

RING_NAMES = {"both-ways": "bidirectional"}


def plan_of_schema_1(plan: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a plan of schema 1 as schema 2 has them; what is wrong stays as it is, for the
    plan's own checks.
    """
    execution = plan.get("execution", {})
    if not isinstance(execution, Mapping):
        execution = {"execution": execution}
    parts = {name: plan[name] for name in IN_PLAN if name in plan}
    parts |= {name: execution[name] for name in IN_EXECUTION if name in execution}
    if "ring" in parts:
        parts["ring"] = RING_NAMES.get(str(parts["ring"]), parts["ring"])
    kept = {name: value for name, value in plan.items() if name not in (*IN_PLAN, "execution")}
    found = kept | {"schema_version": 2, "configuration": _with_order(parts)}
    if "fallback" in execution:
        found["fallback"] = execution["fallback"]
    known = (*IN_EXECUTION, "fallback")
    for name, value in execution.items():
        if name not in known and WITHOUT_A_CHOICE.get(name, ...) != value:
            found[name] = value
    others = plan.get("runner_ups", ())
    if isinstance(others, list | tuple):
        found["runner_ups"] = [_runner_up(one) for one in others]
    return found


def _runner_up(one: Any) -> Any:
    if not isinstance(one, Mapping):
        return one
    names = (*IN_PLAN, "mode")
    parts = {name: one[name] for name in names if name in one}
    kept = {name: value for name, value in one.items() if name not in names}
    return kept | {"configuration": _with_order(parts)}


def _with_order(parts: dict[str, Any]) -> dict[str, Any]:
    """The order of the axes that a placement follows from, which schema 1 didn't say."""
    try:
        mesh = Mesh.model_validate(parts.get("mesh"))
    except ValidationError:
        return parts
    placement = parts.get("placement")
    if not isinstance(placement, list | tuple) or mesh.size != len(placement):
        return parts
    for order in itertools.chain((AXES,), axis_orders(mesh)):
        if placement_of(mesh, order) == tuple(placement):
            return parts | {"order": order}
    return parts
