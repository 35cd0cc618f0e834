"""What the tests of ranks that aren't given the same, or of which one fails, ask of two ranks."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Img2ImgPipeline
from torch import nn

from ditplan.profiles.errors import InputError
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import ExecutionPlan
from ditplan.runtime.groups import RankContext
from ditplan.runtime.models.loading import (
    call_arguments,
    load_pipeline,
    pictures_of,
    prompt_embeddings,
)
from ditplan.runtime.native import parallelize
from tests.distributed.family_tasks import small_model

ODD = 1
"""The rank that is given something else, or fails."""

Found = torch.Tensor | str


def lively(context: RankContext, spec: ModelSpec) -> Any:
    """The spec's own pipeline, not shared with other tests: these change it."""
    pipeline = load_pipeline(spec, None, context.device, "float32")
    pipeline.transformer = small_model(spec).to(context.device)
    return pipeline


def denoised(pipeline: Any, spec: ModelSpec, plan: ExecutionPlan, **more: Any) -> torch.Tensor:
    """The final latents of a call; what is in `more` is given instead of what is usual."""
    work = plan.workload
    device = pipeline._execution_device
    words = prompt_embeddings(spec, work, device, seed=more.pop("words", 1))
    usual = {"generator": torch.Generator().manual_seed(0), "output_type": "latent"}
    with torch.no_grad():
        result = pipeline(**words | call_arguments(spec, work) | usual | more)
    found: torch.Tensor = pictures_of(result)
    return found.cpu()


def attempted(act: Callable[[], torch.Tensor]) -> Found:
    """What it gives, or what it raises."""
    try:
        return act()
    except (ValueError, TypeError, RuntimeError, ArithmeticError, KeyboardInterrupt) as error:
        return f"{type(error).__name__}: {error}"


def another_seed(pipeline: Any, is_odd: bool, _undo: ExitStack) -> dict[str, Any]:
    """Noise of another seed."""
    return {"generator": torch.Generator().manual_seed(int(is_odd))}


def one_generator(pipeline: Any, is_odd: bool, _undo: ExitStack) -> dict[str, Any]:
    """A generator on one rank alone."""
    return {"generator": None} if is_odd else {}


def another_prompt(pipeline: Any, is_odd: bool, _undo: ExitStack) -> dict[str, Any]:
    """Embeddings of another prompt."""
    return {"words": 1 + is_odd}


def another_size(pipeline: Any, is_odd: bool, _undo: ExitStack) -> dict[str, Any]:
    """A larger picture."""
    return {"height": 44} if is_odd else {}


def other_steps(pipeline: Any, is_odd: bool, _undo: ExitStack) -> dict[str, Any]:
    """One step more."""
    return {"num_inference_steps": 4 + is_odd}


def another_scale(pipeline: Any, is_odd: bool, _undo: ExitStack) -> dict[str, Any]:
    """More guidance, by both names that pipelines have for it."""
    name = "true_cfg_scale" if "Qwen" in type(pipeline).__name__ else "guidance_scale"
    return {name: 3.0 + is_odd}


def another_scheduler(pipeline: Any, is_odd: bool, undo: ExitStack) -> dict[str, Any]:
    """A scheduler of another config, exchanged under the plan."""
    undo.callback(setattr, pipeline, "scheduler", pipeline.scheduler)
    if is_odd:
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler.from_config(
            pipeline.scheduler.config, shift=5.0
        )
    return {}


def other_weights(pipeline: Any, is_odd: bool, undo: ExitStack) -> dict[str, Any]:
    """Weights that were written to by way of `.data`, as merging LoRA does."""
    weight = next(pipeline.transformer.transformer_blocks[1].parameters())
    if is_odd:
        weight.data.mul_(2)
        undo.callback(weight.data.div_, 2)
    return {}


class Adapted(nn.Module):
    """A linear layer with LoRA, with the attributes that peft's have."""

    def __init__(self, base: nn.Module, features: int, scale: float) -> None:
        super().__init__()
        self.base_layer = base
        self.lora = nn.Linear(features, features, bias=False)
        nn.init.eye_(self.lora.weight)
        self.scaling = {"default": scale}

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """As the base layer, and the addition."""
        found: torch.Tensor = self.base_layer(hidden)
        added: torch.Tensor = self.scaling["default"] * self.lora(found)
        return found + added


def adapt(pipeline: Any, scale: float, undo: ExitStack) -> None:
    """Puts LoRA on one layer."""
    attention = pipeline.transformer.transformer_blocks[0].attn
    base = attention.to_v
    undo.callback(setattr, attention, "to_v", base)
    attention.to_v = Adapted(base, base.out_features, scale).requires_grad_(False)


def lora_on_one(pipeline: Any, is_odd: bool, undo: ExitStack) -> dict[str, Any]:
    """LoRA loaded on one rank alone."""
    if is_odd:
        adapt(pipeline, 0.5, undo)
    return {}


def another_lora_scale(pipeline: Any, is_odd: bool, undo: ExitStack) -> dict[str, Any]:
    """LoRA on all ranks, of another scale on one."""
    adapt(pipeline, 0.5 + is_odd, undo)
    return {}


def callback_on_one(pipeline: Any, is_odd: bool, _undo: ExitStack) -> dict[str, Any]:
    """A callback that changes latents on one rank."""

    def change(_pipe: Any, _step: int, _time: Any, given: dict[str, Any]) -> dict[str, Any]:
        return {"latents": given["latents"] * 1.05} if is_odd else given

    return {"callback_on_step_end": change}


def interrupt_on_one(pipeline: Any, is_odd: bool, _undo: ExitStack) -> dict[str, Any]:
    """A call that is interrupted on one rank."""

    def interrupt(pipe: Any, _step: int, _time: Any, given: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = is_odd
        return given

    return {"callback_on_step_end": interrupt}


def unknown_argument(pipeline: Any, is_odd: bool, _undo: ExitStack) -> dict[str, Any]:
    """An argument that the pipeline hasn't."""
    return {"heigth": 28} if is_odd else {}


def bad_argument(pipeline: Any, is_odd: bool, _undo: ExitStack) -> dict[str, Any]:
    """An argument that the pipeline refuses."""
    return {"prompt": "and embeddings"} if is_odd else {}


def raising_callback(pipeline: Any, is_odd: bool, _undo: ExitStack) -> dict[str, Any]:
    """A callback that raises in the second step."""

    def fail(_pipe: Any, step: int, _time: Any, given: dict[str, Any]) -> dict[str, Any]:
        if is_odd and step == 1:
            raise ZeroDivisionError("of the callback")
        return given

    return {"callback_on_step_end": fail}


def raising_last_callback(pipeline: Any, is_odd: bool, _undo: ExitStack) -> dict[str, Any]:
    """A callback that raises when the others have no call of the transformer before them."""

    def fail(_pipe: Any, step: int, _time: Any, given: dict[str, Any]) -> dict[str, Any]:
        if is_odd and step == 3:
            raise ZeroDivisionError("of the last callback")
        return given

    return {"callback_on_step_end": fail}


def _raise_in_block(pipeline: Any, is_odd: bool, undo: ExitStack, error: BaseException) -> None:
    calls = 0

    def fail(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if is_odd and calls == 3:
            raise error

    block = pipeline.transformer.transformer_blocks[-1]
    # its attention hasn't exchanged anything yet, for which the others wait
    undo.callback(block.register_forward_pre_hook(fail).remove)


def out_of_memory(pipeline: Any, is_odd: bool, undo: ExitStack) -> dict[str, Any]:
    """A block that finds no memory, while others wait for what it was to send."""
    _raise_in_block(pipeline, is_odd, undo, torch.OutOfMemoryError("CUDA out of memory"))
    return {}


def keyboard(pipeline: Any, is_odd: bool, undo: ExitStack) -> dict[str, Any]:
    """An interrupt by the keyboard in a block."""
    _raise_in_block(pipeline, is_odd, undo, KeyboardInterrupt())
    return {}


def odd_call(
    context: RankContext, spec: ModelSpec, plan: ExecutionPlan, oddities: list[str]
) -> list[tuple[Found, Found]]:
    """For each oddity what a call gives in which one rank is odd, and what the next good one."""
    pipeline = lively(context, spec)
    torch.manual_seed(context.rank)
    results = []
    with parallelize(pipeline, plan, context):
        for oddity in oddities:
            with ExitStack() as undo:
                more = globals()[oddity](pipeline, context.rank == ODD, undo)
                odd = attempted(partial(denoised, pipeline, spec, plan, **more))
            good = attempted(lambda: denoised(pipeline, spec, plan))
            results.append((odd, good))
    return results


def alone(context: RankContext, spec: ModelSpec, plan: ExecutionPlan) -> torch.Tensor:
    """The final latents without any plan."""
    return denoised(lively(context, spec), spec, plan)


def without_generator(
    context: RankContext,
    spec: ModelSpec,
    plan: ExecutionPlan,
    seeds: tuple[int, ...],
    scheduler: Any = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents of the second of two calls without a generator, after two with one: on one device
    from the first rank's seed, and under the plan from each rank's own; and the numbers that are
    drawn afterwards in both cases.
    """
    pipeline = lively(context, spec)
    if scheduler is not None:
        pipeline.scheduler = scheduler

    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        given: list[dict[str, Any]] = [{}, {}, {"generator": None}, {"generator": None}]
        return [denoised(pipeline, spec, plan, **more) for more in given][-1]

    wanted, next_wanted = drawn(seeds[0]), torch.rand(4)
    with parallelize(pipeline, plan, context):
        found = drawn(seeds[context.rank])
    return wanted, found, next_wanted, torch.rand(4)


def another_plan(context: RankContext, spec: ModelSpec, plans: list[ExecutionPlan]) -> None:
    """Ranks with a plan each."""
    parallelize(lively(context, spec), plans[context.rank], context).close()


def weights_before_the_plan(context: RankContext, spec: ModelSpec, plan: ExecutionPlan) -> None:
    """Weights that differ when the plan is put in force."""
    pipeline = lively(context, spec)
    if context.rank == ODD:
        pipeline.transformer.transformer_blocks[0].attn.to_q.weight.data[3, 4] += 1e-3
    parallelize(pipeline, plan, context).close()


def nested(context: RankContext, spec: ModelSpec, plan: ExecutionPlan) -> tuple[str, torch.Tensor]:
    """What a plan within a plan is told, and what the outer one gives then."""
    pipeline, said = lively(context, spec), ""
    with parallelize(pipeline, plan, context):
        try:
            parallelize(pipeline, plan, context)
        except InputError as error:
            said = str(error)
        return said, denoised(pipeline, spec, plan)


def of_second_pipeline(
    context: RankContext, spec: ModelSpec, plan: ExecutionPlan, seeds: tuple[int, ...]
) -> tuple[Found, Found, Found]:
    """Latents of an image-to-image pipeline around the transformer of one that has a plan: on one
    device, under the plan; and those of the plan's own pipeline after it.
    """
    pipeline = lively(context, spec)
    second = StableDiffusion3Img2ImgPipeline(**pipeline.components)
    picture = torch.rand(1, 3, 28, 36, generator=torch.Generator().manual_seed(7))

    def drawn() -> torch.Tensor:
        more = {"image": picture, "strength": 0.7}
        more["generator"] = torch.Generator().manual_seed(seeds[context.rank])
        sizes = plan.workload.height, plan.workload.width
        return denoised(second, spec, plan, height=sizes[0], width=sizes[1], **more)

    wanted = attempted(drawn)
    with parallelize(pipeline, plan, context):
        found = attempted(drawn)
        return wanted, found, attempted(lambda: denoised(pipeline, spec, plan))


def with_guidance(
    context: RankContext, spec: ModelSpec, plan: ExecutionPlan, **more: Any
) -> tuple[Found, Found]:
    """Latents of a call on one device and under the plan."""
    pipeline = lively(context, spec)
    wanted = attempted(lambda: denoised(pipeline, spec, plan, **more))
    with parallelize(pipeline, plan, context):
        return wanted, attempted(lambda: denoised(pipeline, spec, plan, **more))


def of_each(
    context: RankContext, spec: ModelSpec, plan: ExecutionPlan, *given: dict[str, Any]
) -> list[Found]:
    """Latents of calls under one plan, each with arguments of its own."""
    pipeline = lively(context, spec)
    with parallelize(pipeline, plan, context):
        return [attempted(partial(denoised, pipeline, spec, plan, **more)) for more in given]


def perturbed(
    context: RankContext, spec: ModelSpec, plan: ExecutionPlan, scale: float
) -> tuple[Found, Found]:
    """As `with_guidance`, with perturbed-attention guidance of a scale."""
    from diffusers import StableDiffusion3PAGPipeline

    parts = lively(context, spec).components
    for name in ("image_encoder", "feature_extractor"):
        del parts[name]
    pipeline = StableDiffusion3PAGPipeline(**parts, pag_applied_layers=["transformer_blocks.1"])
    wanted = attempted(lambda: denoised(pipeline, spec, plan, pag_scale=scale))
    with parallelize(pipeline, plan, context):
        return wanted, attempted(lambda: denoised(pipeline, spec, plan, pag_scale=scale))


def exchanged_scheduler(
    context: RankContext, spec: ModelSpec, plan: ExecutionPlan
) -> list[tuple[Found, Found]]:
    """Latents of two calls with a scheduler that came under the plan, alone and under it."""
    pipeline = lively(context, spec)
    usual = pipeline.scheduler

    def exchange() -> None:
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler.from_config(usual.config, shift=2.0)

    wanted = []
    for _ in range(2):
        exchange()
        wanted.append(attempted(lambda: denoised(pipeline, spec, plan)))
    pipeline.scheduler = usual
    found = []
    with parallelize(pipeline, plan, context):
        for _ in range(2):
            exchange()
            found.append(attempted(lambda: denoised(pipeline, spec, plan)))
    return list(zip(wanted, found, strict=True))


def interrupted_everywhere(
    context: RankContext, spec: ModelSpec, plan: ExecutionPlan
) -> tuple[Found, Found, Found]:
    """Latents of a call that all ranks interrupt, alone and under the plan, and of the next one."""
    pipeline = lively(context, spec)
    more = interrupt_on_one(pipeline, True, ExitStack())
    wanted = attempted(lambda: denoised(pipeline, spec, plan, **more))
    with parallelize(pipeline, plan, context):
        found = attempted(lambda: denoised(pipeline, spec, plan, **more))
        return wanted, found, attempted(lambda: denoised(pipeline, spec, plan))
