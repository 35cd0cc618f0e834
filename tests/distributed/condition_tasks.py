"""What the tests of ControlNets and adapters ask of ranks: calls of small pipelines."""

from collections.abc import Sequence
from typing import Any

import diffusers
import torch

from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import ExecutionPlan
from ditplan.runtime.groups import RankContext
from ditplan.runtime.models.loading import load_pipeline
from ditplan.runtime.native import parallelize
from ditplan.testing.on_ranks import latents_of_call
from tests.distributed.condition_models import adapted_pipeline, conditioned, control_net
from tests.distributed.family_models import small
from tests.distributed.family_tasks import small_model

CONTROLLED = {
    "sd3": "StableDiffusion3ControlNetPipeline",
    "flux": "FluxControlNetPipeline",
    "z-image": "ZImageControlNetPipeline",
}


def adapted_latents(
    context: RankContext, name: str, plans: Sequence[ExecutionPlan]
) -> list[torch.Tensor | None]:
    """Final latents with an IP-Adapter, plan by plan; None on ranks that one doesn't use."""
    key = f"adapted pipeline {name}"
    if key not in context.kept:
        context.kept[key] = adapted_pipeline(name)
    pipeline, more = context.kept[key]
    return _latents_of(context, small(name), pipeline, plans, more)


def controlled_latents(
    context: RankContext, name: str, plans: Sequence[ExecutionPlan], scale: float = 1.0
) -> list[torch.Tensor | None]:
    """As `adapted_latents`, with a ControlNet."""
    key = f"controlled pipeline {name}"
    if key not in context.kept:
        spec = small(name)
        usual = load_pipeline(spec, None, torch.device("cpu"), "float32")
        transformer = small_model(spec)
        parts = usual.components | {
            "transformer": transformer,
            "controlnet": control_net(name, transformer),
        }
        made = getattr(diffusers, CONTROLLED[name])(**parts)
        made.set_progress_bar_config(disable=True)
        context.kept[key] = made
    work = plans[0].workload
    picture = torch.rand(1, 3, work.height, work.width, generator=torch.Generator().manual_seed(3))
    more = {"control_image": picture, "controlnet_conditioning_scale": scale}
    return _latents_of(context, small(name), context.kept[key], plans, more)


def animated_latents(
    context: RankContext, plans: Sequence[ExecutionPlan]
) -> list[torch.Tensor | None]:
    """As `adapted_latents`, of HunyuanVideo whose first frame is a given picture."""
    spec, _ = conditioned("token-replace")
    key = "animated pipeline"
    if key not in context.kept:
        usual = load_pipeline(spec, None, torch.device("cpu"), "float32")
        parts = usual.components | {"transformer": small_model(spec), "image_processor": None}
        made: Any = diffusers.HunyuanVideoImageToVideoPipeline(**parts)
        made.set_progress_bar_config(disable=True)
        context.kept[key] = made
    work = plans[0].workload
    picture = torch.rand(1, 3, work.height, work.width, generator=torch.Generator().manual_seed(3))
    return _latents_of(context, spec, context.kept[key], plans, {"image": picture})


def _latents_of(
    context: RankContext,
    spec: ModelSpec,
    pipeline: Any,
    plans: Sequence[ExecutionPlan],
    more: dict[str, Any],
) -> list[torch.Tensor | None]:
    found: list[torch.Tensor | None] = []
    for plan in plans:
        with parallelize(pipeline, plan, context):
            used = context.rank in plan.configuration.placement
            found.append(latents_of_call(pipeline, spec, plan.workload, **more) if used else None)
    return found
