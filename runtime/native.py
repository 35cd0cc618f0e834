"""The native backend: in which order parallelisms are applied to a diffusers pipeline."""

from contextlib import ExitStack
from typing import Any

from ditplan.profiles.backends import find_backend
from ditplan.profiles.errors import InputError
from ditplan.profiles.family import ModelFamily, family_of
from ditplan.profiles.mesh import AXES
from ditplan.profiles.plan import ExecutionPlan
from ditplan.runtime.cfg import apply_cfg
from ditplan.runtime.groups import RankContext
from ditplan.runtime.inspection import config_digest
from ditplan.runtime.sequence import SequenceGroups, apply_sequence_parallel


def parallelize(pipeline: Any, plan: ExecutionPlan, context: RankContext) -> ExitStack:
    """Puts a plan in force on a diffusers pipeline; closing the result takes it away again.

    Every rank of `context`'s world calls it, in the same order. Ranks beyond the plan's mesh take
    part in making the groups and are left alone.

    Raises:
        InputError: the plan doesn't fit the pipeline, the world or this backend.
    """
    family = _checked_family(pipeline, plan, context)
    mesh, groups = plan.mesh, context.groups
    cfg = groups.axis_group(mesh, plan.placement, ("cfg",))
    ring = groups.axis_group(mesh, plan.placement, ("ring",))
    ulysses = groups.axis_group(mesh, plan.placement, ("ulysses",))
    sequence = groups.axis_group(mesh, plan.placement, ("ring", "ulysses"))
    with ExitStack() as undo:
        if sequence:
            split = SequenceGroups(all=sequence, ring=ring, ulysses=ulysses)
            apply_sequence_parallel(pipeline.transformer, family, split, undo)
        if cfg:
            apply_cfg(pipeline.transformer, family, cfg, undo)
        return undo.pop_all()


def _checked_family(pipeline: Any, plan: ExecutionPlan, context: RankContext) -> ModelFamily:
    backend = find_backend(plan.backend)
    for axis, degree in zip(AXES, plan.mesh.degrees, strict=True):
        if degree > 1 and axis not in backend.axes:
            raise InputError(
                f"backend {backend.name} can't run {axis}{degree}; its axes are "
                f"{', '.join(backend.axes)}"
            )
    if plan.execution.mode not in backend.modes:
        raise InputError(
            f"backend {backend.name} can't run mode {plan.execution.mode}; it has "
            f"{', '.join(backend.modes)}"
        )
    if context.world_size < plan.mesh.size:
        plan.require_ranks(context.world_size)
    transformer = pipeline.transformer
    name = type(transformer).__name__
    plan.require_model(name, config_digest(transformer.config))
    return family_of(name)
