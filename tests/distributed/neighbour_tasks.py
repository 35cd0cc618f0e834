"""What others do to a pipeline before a plan, under it and after: stories that ranks run."""

import copy
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import diffusers
import diffusers.hooks
import torch
from accelerate.hooks import (
    AlignDevicesHook,
    add_hook_to_module,
    attach_align_device_hook,
    remove_hook_from_module,
)
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    ParallelConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from torch import nn

from ditplan.profiles.errors import InputError
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import ExecutionPlan
from ditplan.profiles.workload import Workload
from ditplan.runtime.groups import RankContext
from ditplan.runtime.models.loading import load_pipeline, prompt_embeddings
from ditplan.runtime.native import parallelize
from ditplan.testing.on_ranks import latents_of_call
from tests.distributed.family_tasks import small_model

Told = list[tuple[str, float | str]]
"""Steps of a story: how far a call's latents are from those of one device, or what was refused."""


def told(
    context: RankContext, spec: ModelSpec, plan: ExecutionPlan, story: Sequence[str]
) -> Told | None:
    """Runs a story on this rank, and on a twin without a plan; None on ranks of no plan.

    `plan` and `close` put the plan in force and take it away, `CALLS` compare a call's latents, all
    else are `ACTIONS`. What is refused isn't done to the twin either.
    """
    takes_part = context.rank in plan.configuration.placement
    pipeline, twin = lively_pipeline(spec), lively_pipeline(spec)
    found: Told = []
    closing = ExitStack()
    for step in story:
        try:
            if step == "plan":
                closing = parallelize(pipeline, plan, context)
            elif step == "close":
                closing.close()
                found += [(step, left) for left in left_behind(pipeline.transformer)]
            elif step in CALLS:
                if takes_part:
                    mine, right = (
                        CALLS[step](one, spec, plan.workload) for one in (pipeline, twin)
                    )
                    found.append((step, float((mine - right).abs().max())))
            else:
                for one in (pipeline, twin):
                    ACTIONS[step](one)
        except InputError as error:
            found.append((step, str(error)))
    closing.close()
    return found if takes_part else None


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def stories_told(
    context: RankContext, spec: ModelSpec, plan: ExecutionPlan, stories: Sequence[Sequence[str]]
) -> list[Told | None]:
    """What `told` gives of each."""
    return [told(context, spec, plan, story) for story in stories]


def require_told(found: Told, story: Sequence[str], words: str, limit: float) -> None:
    """Each call of a story is right, and what it marks with ! is refused, in one line with words.

    Nothing of the plan is left where it was closed.
    """
    expected = [step for step in story if step in CALLS or step.endswith("!")]
    assert [step for step, _ in found] == [step.rstrip("!") for step in expected], found
    for step, (_, outcome) in zip(expected, found, strict=True):
        if step.endswith("!"):
            assert isinstance(outcome, str)
            assert words in outcome
            assert "\n" not in outcome
        else:
            assert isinstance(outcome, float), outcome
            assert outcome <= limit, found


def offloaded_on_one(context: RankContext, spec: ModelSpec, plan: ExecutionPlan) -> None:
    """Puts a plan in force where one rank's transformer is offloaded."""
    pipeline = lively_pipeline(spec)
    if context.rank == 1:
        ACTIONS["model offload"](pipeline)
    parallelize(pipeline, plan, context).close()


def lively_pipeline(spec: ModelSpec) -> Any:
    """The spec's own pipeline, with weights that let attention matter."""
    pipeline = load_pipeline(spec, None, torch.device("cpu"), "float32")
    pipeline.transformer = small_model(spec)
    return pipeline


def _with_callback(pipeline: Any, spec: ModelSpec, work: Workload) -> torch.Tensor:
    """Latents of a call whose callback changes them after each step."""

    def brighter(_pipe: Any, step: int, _time: Any, given: dict[str, Any]) -> dict[str, Any]:
        return {"latents": given["latents"] * 1.05 + 0.01 * step}

    return latents_of_call(pipeline, spec, work, callback_on_step_end=brighter)


def _interrupted(pipeline: Any, spec: ModelSpec, work: Workload) -> torch.Tensor:
    """Latents of a call that its callback interrupts after the first step."""

    def interrupt(pipe: Any, _step: int, _time: Any, given: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = True
        return given

    return latents_of_call(pipeline, spec, work, callback_on_step_end=interrupt)


def _without_a_layer(pipeline: Any, spec: ModelSpec, work: Workload) -> torch.Tensor:
    """Latents of a call with skip-layer guidance, which is another pass that leaves out a block."""
    more = {"skip_guidance_layers": [1], "skip_layer_guidance_stop": 1.0}
    return latents_of_call(pipeline, spec, work, **more)


def _of_second(pipeline: Any, spec: ModelSpec, work: Workload) -> torch.Tensor:
    """Latents of another pipeline around the same modules."""
    second = getattr(diffusers, spec.pipeline_class)(**pipeline.components)
    second.set_progress_bar_config(disable=True)
    return latents_of_call(second, spec, work)


def _with_two_passes(pipeline: Any, spec: ModelSpec, work: Workload) -> torch.Tensor:
    """Latents of FLUX with a negative prompt, for which it makes a second call a step."""
    negative = prompt_embeddings(spec, work, torch.device("cpu"), seed=2)
    more = {f"negative_{name}": words for name, words in negative.items()}
    return latents_of_call(pipeline, spec, work, true_cfg_scale=4.0, **more)


CALLS: dict[str, Callable[[Any, ModelSpec, Workload], torch.Tensor]] = {
    "call": latents_of_call,
    "call with a callback": _with_callback,
    "call that is interrupted": _interrupted,
    "call without a layer": _without_a_layer,
    "call of a second pipeline": _of_second,
    "call with two passes": _with_two_passes,
}


def left_behind(model: nn.Module) -> list[str]:
    """Names of modules that still have something of a closed plan where it could be called."""
    return [
        name
        for name, module in model.named_modules()
        if "ditplan" in type(vars(module).get("forward")).__module__
        or any("ditplan" in one.__module__ for one in type(module).__mro__)
        or any("ditplan" in hook.__module__ for hook in _hooks(module))
    ]


def _hooks(module: nn.Module) -> list[Any]:
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return [getattr(hook, "func", hook) for hook in hooks]


def _lora(name: str, seed: int, targets: Sequence[str]) -> Callable[[Any], None]:
    def add(pipeline: Any) -> None:
        from peft import LoraConfig

        config = LoraConfig(r=4, lora_alpha=4, init_lora_weights=False, target_modules=[*targets])
        model = pipeline.transformer
        model.add_adapter(config, adapter_name=name)
        drawn = torch.Generator().manual_seed(seed)
        for path, weight in model.named_parameters():
            if f".{name}." in path:
                weight.data.copy_(torch.randn(weight.shape, generator=drawn) * 0.3)

    return add


def _other_weights(pipeline: Any, assign: bool = False) -> None:
    drawn = torch.Generator().manual_seed(9)
    weights = {
        name: torch.randn(parameter.shape, generator=drawn) * 0.1
        for name, parameter in pipeline.transformer.named_parameters()
    }
    pipeline.transformer.load_state_dict(weights, strict=False, assign=assign)


def _aligned(pipeline: Any) -> None:
    """Hooks of accelerate on all modules, as sequential offloading has them."""
    attach_align_device_hook(pipeline.transformer, torch.device("cpu"), offload=False)
    add_hook_to_module(pipeline.transformer, AlignDevicesHook(io_same_device=True), append=True)


def _afresh(compiled: Callable[..., Any], **more: bool) -> None:
    """A user's own compiling, which keeps eight variants of all modules of a process together."""
    torch._dynamo.reset()
    compiled(backend="eager", **more)


def _hooked(pipeline: Any) -> None:
    """A user's own hooks: on the whole model, on a block, and in one."""
    model = pipeline.transformer
    twice = lambda _module, _args, output: (output[0] * 2, *output[1:])  # noqa: E731
    model.register_forward_hook(twice)
    blocks = list(model.transformer_blocks.children())
    blocks[0].register_forward_hook(lambda _module, _args, output: tuple(o * 0.5 for o in output))
    blocks[-1].ff.register_forward_hook(lambda _module, _args, output: output * 0.5)


def _own_forward(path: str) -> Callable[[Any], None]:
    """A user's own forward around that of a module."""

    def replace(pipeline: Any) -> None:
        module = pipeline.transformer.get_submodule(path)
        forward = module.forward

        def halved(*args: Any, **kwargs: Any) -> Any:
            result = forward(*args, **kwargs)
            return tuple(one * 0.5 for one in result) if isinstance(result, tuple) else result * 0.5

        module.forward = halved

    return replace


def _other_module(pipeline: Any) -> None:
    """Another block, of the same kind, in place of the first."""
    model = pipeline.transformer
    torch.manual_seed(4)
    another = getattr(diffusers, type(model).__name__).from_config(model.config)
    model.transformer_blocks[0] = another.eval().transformer_blocks[1]


class _Another(nn.Module):
    """A module that knows which one it replaces."""

    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        vars(self)["first"] = first
        self.device, self.dtype = torch.device("cpu"), torch.float32


def _other_parameter(pipeline: Any) -> None:
    """Another parameter in a block and outside of them."""
    block = pipeline.transformer.transformer_blocks[0]
    for module in (block.attn.to_q, pipeline.transformer.proj_out):
        module.weight = nn.Parameter(torch.full(module.weight.shape, 0.01))


def _double_precision(pipeline: Any) -> None:
    """All of it in another dtype, and back: other tensors in the same parameters."""
    pipeline.transformer.to(torch.float64).to(torch.float32)


def _timed(pipeline: Any, **ranges: Any) -> dict[str, Any]:
    """What caches that ask for the timestep are given."""
    return ranges | {
        "current_timestep_callback": lambda: pipeline.current_timestep,
        "spatial_attention_timestep_skip_range": (-1, 1001),
        "spatial_attention_block_skip_range": 2,
    }


CACHES: dict[str, Callable[[Any], Any]] = {
    "first-block cache": lambda _: FirstBlockCacheConfig(threshold=1.0),
    "mag cache": lambda _: MagCacheConfig(
        mag_ratios=[1.0, 0.99, 0.98, 0.97, 0.96, 0.95], num_inference_steps=6, threshold=0.2
    ),
    "taylor cache": lambda _: TaylorSeerCacheConfig(
        cache_interval=2,
        disable_cache_before_step=2,
        taylor_factors_dtype=torch.float32,
        use_lite_mode=True,
    ),
    "pyramid cache": lambda p: PyramidAttentionBroadcastConfig(**_timed(p)),
    "faster cache": lambda p: FasterCacheConfig(
        **_timed(p, unconditional_batch_timestep_skip_range=(-1, 1001), tensor_format="BCHW")
    ),
}
"""Step caches of diffusers, with settings by which six steps leave something out."""


APPLIED = {
    FirstBlockCacheConfig: "apply_first_block_cache",
    MagCacheConfig: "apply_mag_cache",
    TaylorSeerCacheConfig: "apply_taylorseer_cache",
    PyramidAttentionBroadcastConfig: "apply_pyramid_attention_broadcast",
    FasterCacheConfig: "apply_faster_cache",
}


def _enable_cache(made: Callable[[Any], Any], pipeline: Any) -> None:
    """Has a transformer use a cache; those without `enable_cache` have functions for it."""
    model, config = pipeline.transformer, made(pipeline)
    if hasattr(model, "enable_cache"):
        model.enable_cache(config)
    else:
        getattr(diffusers.hooks, APPLIED[type(config)])(model, config)


QKV = ("to_q", "to_k", "to_v")

ACTIONS: dict[str, Callable[[Any], Any]] = {
    "model offload": lambda p: p.enable_model_cpu_offload(device="cpu"),
    "aligned": _aligned,
    "not aligned": lambda p: remove_hook_from_module(p.transformer, recurse=True),
    "no offload": lambda p: p.remove_all_hooks(),
    "layerwise casting": lambda p: p.transformer.enable_layerwise_casting(
        storage_dtype=torch.bfloat16, compute_dtype=torch.float32
    ),
    "group offload": lambda p: p.transformer.enable_group_offload(
        torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1
    ),
    "compile": lambda p: _afresh(p.transformer.compile),
    "compile blocks": lambda p: _afresh(p.transformer.compile_repeated_blocks, fullgraph=True),
    "lora one": _lora("one", 1, QKV),
    "lora two": _lora("two", 2, QKV),
    "lora around": _lora("one", 1, (*QKV, "x_embedder", "context_embedder", "proj_out")),
    "lora on sd3": _lora("one", 1, (*QKV, "pos_embed.proj", "context_embedder", "proj_out")),
    "no lora one": lambda p: p.transformer.delete_adapters(["one"]),
    "only lora two": lambda p: p.transformer.set_adapters(["two"]),
    "half of lora one": lambda p: p.transformer.set_adapters(["one"], [0.5]),
    "lora off": lambda p: p.transformer.disable_adapters(),
    "fuse": lambda p: p.transformer.fuse_lora(adapter_names=["one"]),
    "unfuse": lambda p: p.transformer.unfuse_lora(),
    "other weights": _other_weights,
    "assigned weights": lambda p: _other_weights(p, assign=True),
    "hooked": _hooked,
    "own forward": _own_forward(""),
    "own forward of a block": _own_forward("transformer_blocks.0"),
    "other block": _other_module,
    "other parameter": _other_parameter,
    "other dtype": _double_precision,
    "fuse qkv": lambda p: p.transformer.fuse_qkv_projections(),
    "unfuse qkv": lambda p: p.transformer.unfuse_qkv_projections(),
    "math backend": lambda p: p.transformer.set_attention_backend("_native_math"),
    "native backend": lambda p: p.transformer.set_attention_backend("native"),
    "other scheduler": lambda p: setattr(
        p, "scheduler", type(p.scheduler).from_config(p.scheduler.config, shift=2.0)
    ),
    "other vae": lambda p: setattr(p, "vae", copy.deepcopy(p.vae)),
    "other transformer": lambda p: setattr(p, "transformer", _Another(p.transformer)),
    "first transformer": lambda p: setattr(p, "transformer", p.transformer.first),
    "copy": lambda p: copy.deepcopy(p.transformer),
    "wrapped": lambda p: setattr(p, "transformer", torch.compile(p.transformer, backend="eager")),
    "unwrapped": lambda p: setattr(p, "transformer", p.transformer._orig_mod),
    "cache": lambda p: p.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.0)),
    **{name: partial(_enable_cache, made) for name, made in CACHES.items()},
    "no cache": lambda p: p.transformer.disable_cache(),
    "parallel": lambda p: setattr(p.transformer, "_parallel_config", ParallelConfig()),
    "not parallel": lambda p: setattr(p.transformer, "_parallel_config", None),
    "save": lambda p: p.transformer.save_pretrained(tempfile.mkdtemp()),
}
