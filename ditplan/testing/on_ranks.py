"""What the tests of backends have ranks do; ranks need no pytest for it."""

import os
import signal
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ditplan.profiles.backend import Prepared
from ditplan.profiles.errors import InputError
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import ExecutionPlan
from ditplan.profiles.workload import Workload
from ditplan.runtime.groups import RankContext
from ditplan.runtime.models.loading import (
    call_arguments,
    load_pipeline,
    pictures_of,
    prompt_embeddings,
)
from ditplan.runtime.on_backend import prepare

GAIN = 2.0
"""By which weights of blocks are larger than usual, so that attention matters."""

PLAIN = (bool, int, float, str, bytes, type(None))
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class Outcome:
    """What a rank found under a plan, and after it.

    `distance` is the largest difference of its latents from one device's, in shares of the largest
    of these, and `work` the FLOPs that it did, in shares of one device's; None on ranks that the
    plan doesn't use, and `work` also where blocks are compiled. `left` says what isn't as it was
    after closing, and whether latents are the same bits again. `refusal` is what was said where the
    plan was refused.
    """

    distance: float | None
    work: float | None
    left: tuple[str, ...]
    refusal: str = ""


class CountedFlops(TorchDispatchMode):
    """Counts the FLOPs of products and attention in this thread."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Runs an operation, and counts it."""
        found = func(*args, **(kwargs or {}))
        count = flop_registry.get(getattr(func, "overloadpacket", None))
        if count is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=found)
        return found


def outcome_of(context: RankContext, spec: ModelSpec, plan: ExecutionPlan) -> Outcome:
    """Runs a small random model on this rank alone, under a plan, and alone again."""
    pipeline = _kept_pipeline(context, spec, plan)
    with CountedFlops() as of_one:
        alone = latents_of_call(pipeline, spec, plan.workload)
    before = state_of(pipeline)
    distance, work = None, None
    try:
        prepared = prepare(pipeline, plan, context)
    except InputError as error:
        return Outcome(None, None, left_of(before, pipeline, spec, plan, alone), str(error))
    try:
        if context.rank in plan.configuration.placement:
            # what counts operations can't be compiled
            is_counted = "compile" not in plan.configuration.mode
            with CountedFlops() if is_counted else nullcontext() as own:
                found = latents_of_call(prepared.pipeline, spec, plan.workload)
            work = own.flops / of_one.flops if own else None
            distance = ((found - alone).abs().max() / alone.abs().max()).item()
    finally:
        prepared.close()
    prepared.close()
    return Outcome(distance, work, left_of(before, pipeline, spec, plan, alone))


def call_that_fails(
    context: RankContext, spec: ModelSpec, plan: ExecutionPlan, failing: int, is_killed: bool
) -> None:
    """A call under a plan during which a rank raises, or its process is killed."""
    pipeline = small_pipeline(context, spec, plan)
    if context.rank == failing:
        pipeline.scheduler.step = _kill if is_killed else _raise
    prepared: Prepared = prepare(pipeline, plan, context)
    latents_of_call(prepared.pipeline, spec, plan.workload)
    latents_of_call(prepared.pipeline, spec, plan.workload)


def _kill(*args: Any, **kwargs: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _raise(*args: Any, **kwargs: Any) -> None:
    raise RuntimeError("made to fail")


def _kept_pipeline(context: RankContext, spec: ModelSpec, plan: ExecutionPlan) -> Any:
    """The pipeline of the plan before, if it is of the same model."""
    if context.kept.get("small model") != spec.config_hash:
        context.kept["small pipeline"] = small_pipeline(context, spec, plan)
        context.kept["small model"] = spec.config_hash
    return context.kept["small pipeline"]


def small_pipeline(context: RankContext, spec: ModelSpec, plan: ExecutionPlan) -> Any:
    """A pipeline with the same random weights on every rank."""
    pipeline = load_pipeline(spec, None, context.device, plan.workload.dtype)
    for name, weight in pipeline.transformer.named_parameters():
        if weight.ndim >= 2 and ("blocks" in name or "layers" in name):
            weight.data.mul_(GAIN if weight.ndim == 2 else GAIN**3)
    return pipeline


def latents_of_call(pipeline: Any, spec: ModelSpec, work: Workload, **more: Any) -> torch.Tensor:
    """The final latents of one call of the pipeline, always of the same noise, with random
    embeddings or those in `more`.
    """
    words = prompt_embeddings(spec, work, pipeline._execution_device, seed=1)
    torch.manual_seed(5)
    with torch.no_grad():
        result = pipeline(
            **words | call_arguments(spec, work) | more,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        )
    found: torch.Tensor = pictures_of(result)
    return found


def state_of(pipeline: Any) -> dict[str, object]:
    """All that a plan could leave on a pipeline: its attributes, and of each module its class, its
    attributes and hooks; of tensors a copy.
    """
    found: dict[str, object] = {"the pipeline's class": type(pipeline)}
    found |= {f"the pipeline's {key}": _mark(value) for key, value in vars(pipeline).items()}
    for part, model in pipeline.components.items():
        if not isinstance(model, nn.Module):
            attributes = vars(model) if hasattr(model, "__dict__") else {}
            # what a scheduler counts changes with each call
            found |= {f"{part}'s {key}": callable(value) for key, value in attributes.items()}
            continue
        for path, module in model.named_modules(prefix=part):
            found[f"the class of {path}"] = type(module)
            for key, value in vars(module).items():
                found[f"{path}.{key}"] = _mark(value)
            for hooks in HOOKS:
                found[f"{hooks} of {path}"] = tuple(vars(module)[hooks])
        tensors = [*model.named_parameters(), *model.named_buffers()]
        found |= {f"{part}.{name}'s bits": value.detach().clone() for name, value in tensors}
    return found


def left_of(
    before: dict[str, object],
    pipeline: Any,
    spec: ModelSpec,
    plan: ExecutionPlan,
    alone: torch.Tensor,
) -> tuple[str, ...]:
    """What isn't as it was, such as `transformer.forward was added`."""
    after = state_of(pipeline)
    found = [f"{name} was added" for name in after.keys() - before.keys()]
    found += [f"{name} is gone" for name in before.keys() - after.keys()]
    found += [
        f"{name} changed"
        for name in before.keys() & after.keys()
        if not _are_same(before[name], after[name])
    ]
    if not torch.equal(latents_of_call(pipeline, spec, plan.workload), alone):
        found.append("its latents are others")
    return tuple(sorted(found))


def _mark(value: object) -> object:
    """A plain value, the outline of a container, or what tells an object from another one; tensors
    are compared by their bits.
    """
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, dict):
        return tuple(map(str, value))
    if isinstance(value, list | tuple):
        return len(value)
    return type(value) if isinstance(value, torch.Tensor) else id(value)


def _are_same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return bool(one == other)
