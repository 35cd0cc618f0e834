"""Putting a plan in force on all of its ranks or on none, and anew after a failure."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from torch import nn

from ditplan.profiles.errors import InputError
from ditplan.profiles.plan import ExecutionPlan
from ditplan.runtime.admission.call_guard import CallGuard
from ditplan.runtime.admission.calls import Calls
from ditplan.runtime.admission.channel import Channel
from ditplan.runtime.groups import RankContext
from ditplan.runtime.ranks.devices import device_name
from ditplan.runtime.takeover import take_calls
from ditplan.runtime.weights.sharded import shards_of

IN_FORCE = "ditplan_in_force"
"""Attribute of a transformer on which a plan is in force."""

Apply = Callable[[Calls, ExitStack], None]
"""Makes a pipeline's transformers a plan's; closing the stack takes that away again."""


def require_no_other(models: Sequence[nn.Module]) -> None:
    """Refuses transformers on which a plan is in force.

    Raises:
        InputError: says which plan.
    """
    for model in models:
        if (other := vars(model).get(IN_FORCE)) is not None:
            raise InputError(
                f"a plan is in force on this {type(model).__name__} already ({other}): close what "
                "parallelize() returned before another one is put in force"
            )


def put_in_force(
    pipeline: Any,
    models: Sequence[nn.Module],
    plan: ExecutionPlan,
    context: RankContext,
    apply: Apply,
    forget: Callable[[], None],
) -> ExitStack:
    """Applies a plan, with calls that all its ranks agree on; closing the result takes it away.

    `forget` has `apply` make everything anew that it keeps for the next time.

    Raises:
        InputError: the ranks' transformers don't have the same weights.
    """
    with ExitStack() as undo:
        for model in models:
            vars(model)[IN_FORCE] = f"{plan.model.name} with {plan.mesh}"
            undo.callback(vars(model).pop, IN_FORCE)
        calls = Calls()
        guard = None
        if plan.mesh.size > 1:
            guard = _guard(models, plan, context)
        if guard is not None:
            undo.callback(guard.close)
            guard.pieces += [one.holds for one in map(shards_of, models) if one is not None]
            guard.compare_weights()
            calls = guard
        in_force = undo.enter_context(ExitStack())

        def put() -> None:
            calls.around.clear()
            calls.pieces[:] = [found.holds for found in map(shards_of, models) if found is not None]
            with ExitStack() as applied:
                apply(calls, applied)
                if guard is not None:
                    for model in models:
                        guard.guard(model, applied)
                    guard.know_weights()
                if callable(pipeline) and (guard is not None or calls.around):
                    take_calls(pipeline, calls.run, applied)
                in_force.push(applied.pop_all())

        def renew() -> None:
            in_force.close()
            forget()
            put()

        if guard is not None:
            guard.renew = renew
        put()
        return undo.pop_all()


def _guard(
    models: Sequence[nn.Module], plan: ExecutionPlan, context: RankContext
) -> CallGuard | None:
    """This rank's; None where the plan doesn't use it. Every rank of the world asks."""
    channel = Channel(context, plan.placement)
    if context.rank not in plan.placement:
        return None
    return CallGuard(
        channel,
        context.groups,
        context.device,
        models,
        by_patches=plan.pipefusion is not None,
        may_renew=context.world_size == plan.mesh.size,
        devices_are_unlike=len(set(channel.exchange_objects(device_name(context)))) > 1,
    )
