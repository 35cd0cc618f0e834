"""What the tests ask of ranks: functions that a pool of ranks can import."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
import torch._dynamo.utils
from diffusers import DPMSolverMultistepScheduler
from torch.nn import functional

from ditplan.profiles.catalog import shipped_weights
from ditplan.profiles.family import family_of
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import ExecutionPlan
from ditplan.profiles.workload import Workload
from ditplan.runtime.groups import RankContext
from ditplan.runtime.models.inputs import InputShape, random_inputs
from ditplan.runtime.models.loading import (
    DTYPES,
    load_pipeline,
    prompt_embeddings,
)
from ditplan.runtime.native import parallelize
from ditplan.runtime.sequence.hooks import SdpaInterceptor, answer_attention
from ditplan.runtime.sequence.kernels import PartialAttention, attend_with_lse
from ditplan.runtime.takeover import submodule
from ditplan.testing.on_ranks import latents_of_call

ATTRIBUTES_OF_CALLS = {
    "_guidance_scale",
    "_skip_layer_guidance_scale",
    "_clip_skip",
    "_joint_attention_kwargs",
    "_interrupt",
    "_num_timesteps",
    "_current_timestep",
}


def furthest(reference: torch.Tensor | None, others: list[torch.Tensor | None]) -> float:
    """Largest absolute difference of any rank's result to the reference."""
    assert reference is not None
    return max(float((other - reference).abs().max()) for other in others if other is not None)


def pipeline_of(context: RankContext, spec: ModelSpec, dtype: str = "float32") -> Any:
    """A spec's pipeline, with its weights if they are shipped, kept for the tests that follow."""
    key = f"test pipeline {spec.config_hash} {dtype}"
    if key not in context.kept:
        weights = shipped_weights(spec.name)
        context.kept[key] = load_pipeline(spec, weights, context.device, dtype)
    return context.kept[key]


def same_start(spec: ModelSpec, work: Workload, device: torch.device) -> dict[str, torch.Tensor]:
    """Prompt embeddings and noise as arguments of the pipeline, equal in every dtype.

    Pipelines draw noise in the dtype of the embeddings, which gives other numbers in each.
    """
    words = prompt_embeddings(spec, work, device, seed=1)
    edge = spec.pixels_per_token // spec.config["patch_size"]
    shape = (work.batch, spec.config["in_channels"], work.height // edge, work.width // edge)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return words | {"latents": noise.to(device, DTYPES[work.dtype])}


def denoise(
    pipeline: Any, spec: ModelSpec, work: Workload, words: dict[str, torch.Tensor]
) -> torch.Tensor:
    """The final latents of one call of the pipeline."""
    with torch.no_grad():
        result: torch.Tensor = pipeline(
            **words,
            height=work.height,
            width=work.width,
            num_inference_steps=work.steps,
            guidance_scale=spec.guidance_scale if work.guidance else 1.0,
            output_type="latent",
        ).images
    return result


def latents(
    context: RankContext, spec: ModelSpec, plan: ExecutionPlan, solver: str = ""
) -> torch.Tensor | None:
    """Final latents of the plan; None on ranks that it doesn't use."""
    pipeline = pipeline_of(context, spec, plan.workload.dtype)
    euler = pipeline.scheduler
    if solver:
        pipeline.scheduler = DPMSolverMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction"
        )
    try:
        with parallelize(pipeline, plan, context):
            if context.rank not in plan.configuration.placement:
                return None
            words = same_start(spec, plan.workload, context.device)
            return denoise(pipeline, spec, plan.workload, words)
    finally:
        pipeline.scheduler = euler


def latents_of_each(
    context: RankContext, spec: ModelSpec, plans: list[ExecutionPlan]
) -> list[torch.Tensor | None]:
    """Several plans one after the other in one process group."""
    return [latents(context, spec, plan) for plan in plans]


def latents_without_exchange(
    context: RankContext, spec: ModelSpec, plan: ExecutionPlan
) -> torch.Tensor:
    """As `latents`, but every rank attends to its own share only: what a missing exchange would
    give.
    """
    pipeline = pipeline_of(context, spec)
    with parallelize(pipeline, plan, context):
        for index in range(len(pipeline.transformer.transformer_blocks)):
            module: Any = submodule(pipeline.transformer, f"transformer_blocks.{index}.attn")
            module._attention_answer = lambda q, k, v, scale: (
                functional.scaled_dot_product_attention(q, k, v, scale=scale)
            )
        words = same_start(spec, plan.workload, context.device)
        return denoise(pipeline, spec, plan.workload, words)


def transformer_output(
    context: RankContext,
    spec: ModelSpec,
    plan: ExecutionPlan,
    samples: int,
    control: bool = False,
    return_dict: bool = False,
) -> torch.Tensor | None:
    """One forward of the transformer with `samples` in the batch, with or without ControlNet
    residuals.
    """
    pipeline = pipeline_of(context, spec)
    config = pipeline.transformer.config
    shapes = family_of(spec.transformer_class).inputs
    work = plan.workload
    sizes = InputShape(samples, work.text_tokens, work.height // 2, work.width // 2)
    inputs = random_inputs(shapes, sizes, config, context.device, torch.float32)
    if control:
        width = config.num_attention_heads * config.attention_head_dim
        tokens = spec.image_tokens(work)
        generator = torch.Generator().manual_seed(3)
        inputs["block_controlnet_hidden_states"] = [
            torch.randn(samples, tokens, width, generator=generator) for _ in range(2)
        ]
    with parallelize(pipeline, plan, context), torch.no_grad():
        if context.rank not in plan.configuration.placement:
            return None
        output = pipeline.transformer(**inputs, return_dict=return_dict)
        result: torch.Tensor = output.sample if return_dict else output[0]
        return result


def state_of(pipeline: Any) -> dict[str, object]:
    """What a plan may change for a while, by name: classes, hooks, attributes of instances."""
    replaced = sorted({"step", "set_timesteps"} & vars(pipeline.scheduler).keys())
    state: dict[str, object] = {
        "pipeline": (type(pipeline), sorted(vars(pipeline).keys() - ATTRIBUTES_OF_CALLS)),
        "scheduler": (type(pipeline.scheduler), replaced),
    }
    for name, module in pipeline.transformer.named_modules(prefix="transformer"):
        hooks = (len(module._forward_hooks), len(module._forward_pre_hooks))
        state[name] = (
            type(module),
            hooks,
            sorted(vars(module).keys() - _registry_of_calls(module)),
        )
    return state


def _registry_of_calls(module: torch.nn.Module) -> set[str]:
    """The registry without hooks that diffusers' `cache_context` leaves on a called model."""
    registry = vars(module).get("_diffusers_hook")
    return {"_diffusers_hook"} if registry is not None and not registry.hooks else set()


def differing(one: dict[str, object], other: dict[str, object]) -> list[str]:
    """The names under which two states differ."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def changes_left(context: RankContext, spec: ModelSpec, plan: ExecutionPlan) -> list[str]:
    """What a closed plan, and those before it, left other than a new pipeline has it."""
    pipeline = pipeline_of(context, spec)
    parallelize(pipeline, plan, context).close()
    fresh = load_pipeline(spec, shipped_weights(spec.name), context.device, "float32")
    return differing(state_of(fresh), state_of(pipeline))


def latents_and_compiles(
    context: RankContext,
    spec: ModelSpec,
    plans: list[ExecutionPlan],
    latents_of: Callable[[RankContext, ModelSpec, ExecutionPlan], torch.Tensor | None],
) -> list[tuple[torch.Tensor | None, int]]:
    """Each plan's final latents, and how many graphs torch.compile made for them."""
    made = torch._dynamo.utils.counters["stats"]
    results = []
    for plan in plans:
        before = made["unique_graphs"]
        found = latents_of(context, spec, plan)
        results.append((found, made["unique_graphs"] - before))
    return results


def latents_of_blocks_that_break_graphs(
    context: RankContext, spec: ModelSpec, plan: ExecutionPlan
) -> torch.Tensor:
    """Latents, with a hook in a block that torch.compile can't trace."""
    pipeline = pipeline_of(context, spec)
    hooked = submodule(pipeline.transformer, "transformer_blocks.0.ff")
    hook = hooked.register_forward_hook(lambda *_: torch._dynamo.graph_break())
    try:
        with parallelize(pipeline, plan, context):
            words = same_start(spec, plan.workload, context.device)
            return denoise(pipeline, spec, plan.workload, words)
    finally:
        hook.remove()


def latents_around_the_door(context: RankContext, spec: ModelSpec, plan: ExecutionPlan) -> None:
    """Runs with a processor that doesn't use scaled_dot_product_attention."""
    pipeline = pipeline_of(context, spec)
    usual = pipeline.transformer.attn_processors

    class OwnShareOnly:
        def __call__(
            self,
            attn: Any,
            hidden_states: torch.Tensor,
            encoder_hidden_states: torch.Tensor,
            **_: Any,
        ) -> tuple[torch.Tensor, torch.Tensor]:
            return hidden_states, encoder_hidden_states

    try:
        pipeline.transformer.set_attn_processor(OwnShareOnly())
        with parallelize(pipeline, plan, context):
            words = same_start(spec, plan.workload, context.device)
            denoise(pipeline, spec, plan.workload, words)
    finally:
        pipeline.transformer.set_attn_processor(usual)


def refusals_of_door(_context: RankContext) -> dict[str, str]:
    """What the attention door says to each thing that it can't honour."""
    query, module = torch.randn(1, 2, 4, 8), torch.nn.Module()
    module._attention_name = "blocks.0.attn"  # type: ignore[assignment]
    module._attention_adapters = {}  # type: ignore[assignment]
    asked: dict[str, dict[str, Any]] = {
        "mask": {"attn_mask": torch.zeros(4, 4)},
        "causal": {"is_causal": True},
        "dropout": {"dropout_p": 0.1},
        "grouped": {"enable_gqa": True},
    }
    said = {}
    for name, kwargs in asked.items():
        try:
            with SdpaInterceptor(module):
                functional.scaled_dot_product_attention(query, query, query, **kwargs)
        except ValueError as error:
            said[name] = str(error)
    return said


class Doubled(torch.nn.Module):
    """A module that attends twice."""

    def forward(self, query: torch.Tensor) -> torch.Tensor:
        """(B, H, S, D) -> (B, H, S, D)."""
        once = functional.scaled_dot_product_attention(query, query, query)
        return functional.scaled_dot_product_attention(once, once, once)


def attends_twice(_context: RankContext) -> None:
    """Calls a module that asks the door twice."""
    module = Doubled()
    with ExitStack() as undo:
        answer_attention(module, "doubled", lambda query, _k, _v, _s: query, undo)
        module(torch.randn(1, 2, 4, 8))


def answers_a_replaced_forward(_context: RankContext) -> None:
    """Answers a module that somebody has given a forward of its own."""
    module = Doubled()
    module.forward = lambda query: query  # type: ignore[method-assign]
    with ExitStack() as undo:
        answer_attention(module, "replaced", lambda query, _k, _v, _s: query, undo)


def merge_error(_context: RankContext, sizes: tuple[int, ...]) -> float:
    """Distance of attention merged from pieces of the keys to attention over all of them."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, n, 16, generator=generator) for n in (5, 12, 12))
    merged = PartialAttention()
    for keys, values in zip(key.split(sizes, 2), value.split(sizes, 2), strict=True):
        merged.add(*attend_with_lse(query, keys, values, None))
    whole = functional.scaled_dot_product_attention(query, key, value)
    return float((merged.result(query.dtype) - whole).abs().max())


def tokens_held(context: RankContext, spec: ModelSpec, plan: ExecutionPlan) -> tuple[int, int]:
    """How many image and text tokens enter the first block of an SD3 on this rank."""
    pipeline, seen = pipeline_of(context, spec), []

    def note(_module: Any, _args: Any, given: dict[str, torch.Tensor]) -> None:
        seen.append((given["hidden_states"].shape[1], given["encoder_hidden_states"].shape[1]))

    block = pipeline.transformer.transformer_blocks[0]
    noting = block.register_forward_pre_hook(note, with_kwargs=True)
    with parallelize(pipeline, plan, context):
        latents_of_call(pipeline, spec, plan.workload)
    noting.remove()
    found: tuple[int, int] = seen[-1]
    return found


def latents_after_groups_were_closed(
    context: RankContext, spec: ModelSpec, plan: ExecutionPlan
) -> torch.Tensor | None:
    """As `latents`, after the same plan was in force and the groups made for it were closed."""
    latents(context, spec, plan)
    context.groups.close()
    return latents(context, spec, plan)
