"""Putting a plan in force on all of its ranks or on none, and anew after a failure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

from torch import nn

from ditplan.profiles.errors import InputError
from ditplan.profiles.plan import ExecutionPlan
from ditplan.runtime.admission.call_guard import CallGuard
from ditplan.runtime.admission.calls import Calls
from ditplan.runtime.admission.channel import Channel
from ditplan.runtime.groups import RankContext
from ditplan.runtime.in_force import PlanInForce
from ditplan.runtime.ranks.devices import device_name
from ditplan.runtime.takeover import take_calls
from ditplan.runtime.weights.sharded import shards_of

IN_FORCE = "ditplan_in_force"
"""Attribute of a transformer on which a plan is in force."""

Apply = Callable[[Calls, ExitStack], None]
"""Makes a pipeline's transformers a plan's; closing the stack takes that away again."""


def require_no_other(models: Iterable[nn.Module]) -> None:
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
    models: Mapping[str, nn.Module],
    plan: ExecutionPlan,
    context: RankContext,
    apply: Apply,
    closing: ExitStack,
) -> ExitStack:
    """Applies a plan, with calls that all its ranks agree on; closing the result takes it away.

    `models` are by their names in the pipeline; `closing` is closed at the end, when the plan has
    been taken away.

    Raises:
        InputError: the ranks' transformers don't have the same weights.
    """
    with ExitStack() as undo:
        undo.enter_context(closing)
        for model in models.values():
            vars(model)[IN_FORCE] = f"{plan.model.name} with {plan.mesh}"
            undo.callback(vars(model).pop, IN_FORCE)
        all_models = list(models.values())
        guard = _guard(all_models, plan, context, undo)
        calls = guard or Calls()

        def put(applied: ExitStack) -> None:
            calls.around.clear()
            calls.watches.clear()
            calls.graphs.clear()
            held = (shards_of(model) for model in all_models)
            calls.pieces[:] = [found.holds for found in held if found is not None]
            if guard is not None:
                guard.doubt_changed_weights()
            apply(calls, applied)
            if guard is not None:
                for model in all_models:
                    guard.guard(model, applied)
                guard.know_plan()
            if callable(pipeline) and (guard is not None or calls.around or calls.watches):
                take_calls(pipeline, calls.run, applied)

        def together() -> AbstractContextManager[None]:
            return nullcontext() if guard is None or guard.is_in_call else guard.failing_together()

        in_force = PlanInForce(
            pipeline,
            models,
            put,
            together,
            of_graphs="graph" in plan.configuration.mode,
            across_steps=plan.configuration.pipefusion is not None,
        )

        calls.weights_moved = in_force.note_moved
        if guard is not None:
            guard.renew = in_force.put_anew
        in_force.open(undo)
        return undo.pop_all()


def _guard(
    models: Sequence[nn.Module], plan: ExecutionPlan, context: RankContext, undo: ExitStack
) -> CallGuard | None:
    """This rank's, when the ranks have compared their weights; None for a plan of one rank, and
    where the plan doesn't use this one. Every rank of the world asks.
    """
    if plan.mesh.size == 1:
        return None
    channel = Channel(context, plan.configuration.placement)
    if context.rank not in plan.configuration.placement:
        return None
    guard = CallGuard(
        channel,
        context.groups,
        context.device,
        models,
        by_patches=plan.configuration.pipefusion is not None,
        may_renew=context.world_size == plan.mesh.size,
        devices_are_unlike=len(set(channel.exchange_objects(device_name(context)))) > 1,
    )
    undo.callback(guard.close)
    guard.pieces += [one.holds for one in map(shards_of, models) if one is not None]
    guard.compare_weights()
    return guard
