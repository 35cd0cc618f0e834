"""What `benchmarks.beside_a_plan` asks of ranks."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DEISMultistepScheduler
from torch import nn

from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import ExecutionPlan
from ditplan.runtime.groups import RankContext
from ditplan.runtime.models.loading import load_pipeline
from ditplan.runtime.native import parallelize
from ditplan.testing.on_ranks import latents_of_call
from tests.distributed.family_tasks import small_model
from tests.distributed.patch_tasks import scheduler_named


def latents_of_works(
    context: RankContext, spec: ModelSpec, plans: Sequence[ExecutionPlan], change: str = ""
) -> list[torch.Tensor]:
    """Latents of a call of each plan's workload, with a changed model or another scheduler."""
    key = f"beside a plan {spec.config_hash} {change}"
    if key not in context.kept:
        context.kept[key] = _changed_pipeline(spec, change)
    pipeline, found = context.kept[key], []
    for plan in plans:
        with parallelize(pipeline, plan, context):
            if context.rank in plan.configuration.placement:
                found.append(latents_of_call(pipeline, spec, plan.workload))
    return found


def _changed_pipeline(spec: ModelSpec, change: str) -> Any:
    pipeline = load_pipeline(spec, None, torch.device("cpu"), "float32")
    pipeline.transformer = small_model(spec)
    if change == "int8":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        quantize_(pipeline.transformer, Int8WeightOnlyConfig())
    elif change == "nf4":
        _to_four_bits(pipeline.transformer)
    elif change == "deis":
        flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
        pipeline.scheduler = DEISMultistepScheduler(**flow)
    elif change not in ("", "euler"):
        pipeline.scheduler = scheduler_named(change)
    return pipeline


def _to_four_bits(model: nn.Module) -> None:
    """Has linear layers of bitsandbytes in a model's blocks, with weights of 4 bits."""
    from bitsandbytes.nn import Linear4bit

    for path, module in list(model.named_modules()):
        if type(module) is nn.Linear and "blocks" in path:
            sizes = module.in_features, module.out_features, module.bias is not None
            made = Linear4bit(*sizes, compute_dtype=torch.float32, quant_type="nf4")
            made.load_state_dict(module.state_dict())
            owner, _, name = path.rpartition(".")
            # it quantizes when it is moved
            setattr(model.get_submodule(owner), name, made.to("cpu"))
