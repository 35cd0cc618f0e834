"""What the tests of plans beside, and after, a call that fails inside ask of ranks."""

from collections.abc import Sequence
from contextlib import ExitStack
from unittest import mock

from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import ExecutionPlan
from ditplan.runtime.admission.call_guard import CallGuard
from ditplan.runtime.admission.channel import Message
from ditplan.runtime.groups import RankContext
from ditplan.runtime.native import parallelize
from tests.distributed.agreement_tasks import (
    ODD,
    Found,
    attempted,
    denoised,
    lively,
    out_of_memory,
)


def beside_other_ranks(
    context: RankContext, spec: ModelSpec, plan: ExecutionPlan
) -> list[Found | None]:
    """What a call gives in which a rank fails inside, the next one, and one of the plan when it was
    put in force again, where there are ranks beside the plan's.
    """
    pipeline = lively(context, spec)
    takes_part = context.rank in plan.configuration.placement
    found: list[Found | None] = []
    with parallelize(pipeline, plan, context):
        if takes_part:
            with ExitStack() as undo:
                out_of_memory(pipeline, context.rank == ODD, undo)
                found.append(attempted(lambda: denoised(pipeline, spec, plan)))
            found.append(attempted(lambda: denoised(pipeline, spec, plan)))
    with parallelize(pipeline, plan, context):
        if takes_part:
            found.append(attempted(lambda: denoised(pipeline, spec, plan)))
    return found


def after_another_plan_broke(
    context: RankContext, spec: ModelSpec, plan: ExecutionPlan
) -> tuple[Found, Found, Found]:
    """What a call gives in which a rank fails inside; and what is right of two others, under a plan
    that was in force on another pipeline meanwhile, and under the same one put in force again.
    """
    pipeline, other = lively(context, spec), lively(context, spec)
    with parallelize(other, plan, context):
        before = denoised(other, spec, plan)
        with parallelize(pipeline, plan, context), ExitStack() as undo:
            out_of_memory(pipeline, context.rank == ODD, undo)
            broken = attempted(lambda: denoised(pipeline, spec, plan))
        of_other = attempted(lambda: denoised(other, spec, plan) - before)
    with parallelize(pipeline, plan, context):
        return broken, of_other, attempted(lambda: denoised(pipeline, spec, plan) - before)


def graphs_forgotten(context: RankContext, spec: ModelSpec, plan: ExecutionPlan) -> list[int]:
    """How often graphs would have been captured anew after each of four calls; before the third one
    rank alone puts a hook on a block, for which its plan is put in force anew.
    """
    pipeline = lively(context, spec)
    own, forgotten, found = CallGuard._capture_alike, [0], []

    def counting(self: CallGuard, messages: Sequence[Message]) -> None:
        def forget() -> None:
            forgotten[0] += 1

        self.graphs[:] = [forget]
        own(self, messages)

    with (
        mock.patch.object(CallGuard, "_capture_alike", counting),
        parallelize(pipeline, plan, context),
        ExitStack() as undo,
    ):
        for number in range(4):
            if number == 2 and context.rank == ODD:
                block = pipeline.transformer.transformer_blocks[0]
                undo.callback(block.register_forward_hook(lambda *_: None).remove)
            denoised(pipeline, spec, plan)
            found.append(forgotten[0])
    return found
