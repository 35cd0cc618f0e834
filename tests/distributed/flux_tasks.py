"""What the tests of FLUX ask of ranks."""

from contextlib import ExitStack
from typing import Any

import torch

from ditplan.profiles.family import family_of
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import ExecutionPlan
from ditplan.runtime.groups import RankContext
from ditplan.runtime.models.inputs import InputShape, random_inputs
from ditplan.runtime.native import parallelize
from ditplan.testing.on_ranks import latents_of_call
from tests.distributed.rank_tasks import pipeline_of


def flux_latents(
    context: RankContext, spec: ModelSpec, plan: ExecutionPlan, own_positions: bool = False
) -> torch.Tensor | None:
    """Final latents of the plan; None on ranks that it doesn't use.

    With `own_positions` each rank counts those of its tokens from its own last one on.
    """
    pipeline, work = pipeline_of(context, spec), plan.workload
    with ExitStack() as undo:
        if own_positions:
            hook = pipeline.transformer.pos_embed.register_forward_pre_hook(
                lambda _module, args: (args[0] - args[0][-1],)
            )
            undo.callback(hook.remove)
        undo.enter_context(parallelize(pipeline, plan, context))
        if context.rank not in plan.configuration.placement:
            return None
        return latents_of_call(pipeline, spec, work)


def flux_output(
    context: RankContext,
    spec: ModelSpec,
    plan: ExecutionPlan,
    control: bool = False,
    batched_ids: bool = False,
) -> torch.Tensor | None:
    """One forward of the transformer with two samples.

    Optionally with ControlNet residuals for both sorts of blocks, and with ids that have the batch
    dim of older callers.
    """
    pipeline, work = pipeline_of(context, spec), plan.workload
    samples, device = 2, context.device
    sizes = InputShape.of_picture(spec, samples, work.text_tokens, work.height, work.width)
    shapes = family_of(spec.transformer_class).inputs_of(spec.config)
    if control:
        residual = ("batch", "image_tokens", "80")
        shapes |= {"controlnet_block_samples": residual}
        shapes |= {"controlnet_single_block_samples": residual}
    inputs: dict[str, Any] = dict(random_inputs(shapes, sizes, spec.config, device, torch.float32))
    if control:
        for name in ("controlnet_block_samples", "controlnet_single_block_samples"):
            inputs[name] = (inputs[name], -inputs[name])
    if batched_ids:
        for name in ("img_ids", "txt_ids"):
            inputs[name] = inputs[name].expand(4, -1, -1)
    with parallelize(pipeline, plan, context), torch.no_grad():
        if context.rank not in plan.configuration.placement:
            return None
        output: torch.Tensor = pipeline.transformer(**inputs).sample
        return output
