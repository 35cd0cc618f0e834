"""What others do to a pipeline before a plan, under it and after: stories that ranks run."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from ditplan.profiles.errors import InputError
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import ExecutionPlan
from ditplan.runtime.groups import RankContext
from ditplan.runtime.models.loading import load_pipeline
from ditplan.runtime.native import parallelize
from tests.distributed.family_tasks import small_model
from tests.distributed.rank_tasks import latents_of_call

Outcome = float | str
"""How far a call's latents are from those of one device in the same state, or what was refused."""


def told(
    context: RankContext, spec: ModelSpec, plan: ExecutionPlan, story: Sequence[str]
) -> list[Outcome]:
    """Runs a story on this rank, and on a twin without a plan; ranks of no plan tell nothing.

    `plan` and `close` put the plan in force and take it away, `call` compares a call's latents, all
    else are `ACTIONS`.
    """
    pipeline, twin = _pipeline(spec), _pipeline(spec)
    found: list[Outcome] = []
    closing = ExitStack()
    for step in story:
        try:
            if step == "plan":
                closing = parallelize(pipeline, plan, context)
            elif step == "close":
                closing.close()
            elif step == "call":
                if context.rank in plan.configuration.placement:
                    mine = latents_of_call(pipeline, spec, plan.workload)
                    right = latents_of_call(twin, spec, plan.workload)
                    found.append(float((mine - right).abs().max()))
            else:
                # first on the pipeline: what is refused there isn't done to the twin either
                for one in (pipeline, twin):
                    ACTIONS[step](one)
        except InputError as error:
            found.append(str(error))
    closing.close()
    if context.rank not in plan.configuration.placement:
        return []
    return [*found, *_left_behind(pipeline)]


def _pipeline(spec: ModelSpec) -> Any:
    pipeline = load_pipeline(spec, None, torch.device("cpu"), "float32")
    pipeline.transformer = small_model(spec)
    return pipeline


def _left_behind(pipeline: Any) -> list[str]:
    """Names of modules that still have something of a closed plan."""
    return [
        name
        for name, module in pipeline.transformer.named_modules()
        if any("ditplan" in type(value).__module__ for value in vars(module).values())
        or "Watched" in repr(type(module).__mro__)
    ]


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


def _other_weights(pipeline: Any) -> None:
    weights = pipeline.transformer.state_dict()
    pipeline.transformer.load_state_dict(
        {
            name: value.roll(1, 0)
            for name, value in weights.items()
            if isinstance(value, torch.Tensor)
        }
    )


QKV = ("to_q", "to_k", "to_v")

ACTIONS: dict[str, Callable[[Any], Any]] = {
    "model offload": lambda p: p.enable_model_cpu_offload(device="cpu"),
    "sequential offload": lambda p: p.enable_sequential_cpu_offload(device="cpu"),
    "no offload": lambda p: p.remove_all_hooks(),
    "group offload": lambda p: p.transformer.enable_group_offload(
        torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1
    ),
    "compile": lambda p: p.transformer.compile(backend="eager"),
    "compile blocks": lambda p: p.transformer.compile_repeated_blocks(
        backend="eager", fullgraph=True
    ),
    "lora one": _lora("one", 1, QKV),
    "lora two": _lora("two", 2, QKV),
    "lora around": _lora("one", 1, (*QKV, "x_embedder", "context_embedder", "proj_out")),
    "no lora one": lambda p: p.transformer.delete_adapters(["one"]),
    "only lora two": lambda p: p.transformer.set_adapters(["two"]),
    "half of lora one": lambda p: p.transformer.set_adapters(["one"], [0.5]),
    "lora off": lambda p: p.transformer.disable_adapters(),
    "fuse": lambda p: p.transformer.fuse_lora(adapter_names=["one"]),
    "unfuse": lambda p: p.transformer.unfuse_lora(),
    "other weights": _other_weights,
}
