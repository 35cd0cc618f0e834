"""What the tests of diffusers' context parallelism ask of ranks."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from torch import nn

from ditplan.profiles.errors import InputError
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import ExecutionPlan
from ditplan.runtime.context_parallel import context_parallelize
from ditplan.runtime.groups import RankContext
from tests.distributed.family_tasks import outputs_of, small_model


def pipeline_around(model: nn.Module) -> Any:
    """What of a pipeline a plan needs, for calls of its transformer alone."""
    return SimpleNamespace(transformer=model, scheduler=SimpleNamespace(step=lambda: None))


def outputs_by_diffusers(
    context: RankContext,
    spec: ModelSpec,
    plans: list[ExecutionPlan],
    inputs: list[dict[str, Any]],
) -> list[torch.Tensor | None]:
    """The predictions of a step for each plan, on one model; None on ranks that it doesn't use."""
    model = small_model(spec)
    results: list[torch.Tensor | None] = []
    for plan in plans:
        with context_parallelize(pipeline_around(model), plan, context):
            if context.rank not in plan.configuration.placement:
                results.append(None)
                continue
            results.append(torch.stack(outputs_of(model, spec, inputs)))
    return results


def refusal_by_diffusers(
    context: RankContext, spec: ModelSpec, plan: ExecutionPlan, inputs: list[dict[str, Any]]
) -> str:
    """What a plan or its call is refused with."""
    model = small_model(spec)
    try:
        with context_parallelize(pipeline_around(model), plan, context):
            if context.rank in plan.configuration.placement:
                outputs_of(model, spec, inputs)
    except InputError as error:
        return str(error)
    return ""


def left_by_diffusers(
    context: RankContext,
    spec: ModelSpec,
    plan: ExecutionPlan,
    inputs: list[dict[str, Any]],
    *,
    is_refused: bool = False,
) -> list[str]:
    """What of a model, and of diffusers' defaults, is other than before a plan was put in force."""
    model = small_model(spec)
    outputs_of(model, spec, inputs)
    before, default = dict(_state_of(model)), _AttentionBackendRegistry.get_active_backend()
    own = torch.stack(outputs_of(model, spec, inputs))
    refused: AbstractContextManager[Any] = suppress(InputError) if is_refused else nullcontext()
    with refused, context_parallelize(pipeline_around(model), plan, context):
        outputs_of(model, spec, inputs)
    after = dict(_state_of(model))
    found = [name for name in {*before, *after} if before.get(name) != after.get(name)]
    if _AttentionBackendRegistry.get_active_backend() != default:
        found.append("diffusers' default attention")
    if torch.accelerator.device_count():
        found.append("torch's count of accelerators")
    if not torch.equal(torch.stack(outputs_of(model, spec, inputs)), own):
        found.append("what it computes")
    return found


def _state_of(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """All that is set on a model's modules and attention processors, by name."""
    for path, module in model.named_modules():
        yield f"{path}: class", type(module)
        for owner, attributes in (("", vars(module)), (".processor", _processor_of(module))):
            for name, value in attributes.items():
                yield f"{path}{owner}.{name}", _comparable(value)


def _processor_of(module: nn.Module) -> dict[str, Any]:
    return getattr(vars(module).get("processor"), "__dict__", {})


def _comparable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _comparable(item) for key, item in value.items()}
    return id(value) if isinstance(value, torch.Tensor) else value
