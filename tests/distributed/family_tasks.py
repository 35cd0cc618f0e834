"""What the tests of families ask of ranks: forwards of a small transformer of each."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import FirstBlockCacheConfig

from ditplan.profiles.errors import InputError
from ditplan.profiles.family import family_of
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import ExecutionPlan
from ditplan.runtime.batch.call_split import PASSES
from ditplan.runtime.groups import RankContext
from ditplan.runtime.models.inputs import InputShape, random_inputs
from ditplan.runtime.models.loading import load_pipeline, random_model
from ditplan.runtime.native import parallelize
from ditplan.runtime.takeover import sample_of
from ditplan.testing.on_ranks import latents_of_call

GAIN = 2.0
TEXT_TOKENS = 7
ROWS, COLUMNS = 7, 9


def small_model(spec: ModelSpec) -> Any:
    """The spec's transformer with weights that let attention matter."""
    model = random_model(spec.transformer_class, spec.config, torch.device("cpu"), torch.float32)
    for name, weight in model.named_parameters():
        if weight.ndim >= 2 and ("blocks" in name or "layers" in name):
            weight.data.mul_(GAIN if weight.ndim == 2 else GAIN**3)
    return model.eval()


def inputs_of(
    spec: ModelSpec, samples: int = 2, frames: int = 1, masked: int = 0, seed: int = 0
) -> dict[str, Any]:
    """Arguments of a forward; `masked` text tokens of the last sample don't count."""
    family = family_of(spec.transformer_class)
    sizes = InputShape.of_tokens(family, spec.config, samples, TEXT_TOKENS, (frames, ROWS, COLUMNS))
    inputs = random_inputs(
        family.inputs_of(spec.config),
        sizes,
        spec.config,
        torch.device("cpu"),
        torch.float32,
        seed,
        family,
    )
    for name, kind in family.input_kinds.items():
        if kind == "mask" and masked and name in inputs:
            inputs[name][-1, -masked:] = 0
    return inputs


def outputs_of(model: Any, spec: ModelSpec, inputs: list[dict[str, Any]]) -> list[torch.Tensor]:
    """The predictions of a step: one call, or one for each pass with inputs of its own."""
    by_calls = family_of(spec.transformer_class).guidance == "calls"
    found = []
    with torch.no_grad():
        for name, given in zip(PASSES, inputs, strict=False):
            with model.cache_context(name) if by_calls else nullcontext():
                sample = sample_of(model(**given, return_dict=False))
            found.append(torch.stack(sample) if isinstance(sample, list) else sample)
    return found


def step_alone(spec: ModelSpec, inputs: list[dict[str, Any]]) -> torch.Tensor:
    """The predictions of a step (calls, samples, ...), by the model as diffusers has it."""
    return torch.stack(outputs_of(small_model(spec), spec, inputs))


def step_outputs(
    context: RankContext,
    spec: ModelSpec,
    plans: list[ExecutionPlan],
    inputs: list[dict[str, Any]],
) -> list[torch.Tensor | None]:
    """What `step_alone` gives, for each plan in the second of two steps.

    None on ranks that a plan doesn't use.
    """
    key = f"family model {spec.config_hash}"
    if key not in context.kept:
        context.kept[key] = small_model(spec)
    model, scheduler = context.kept[key], SimpleNamespace(step=lambda: None)
    pipeline = SimpleNamespace(transformer=model, scheduler=scheduler)
    results: list[torch.Tensor | None] = []
    for plan in plans:
        with parallelize(pipeline, plan, context):
            if context.rank not in plan.configuration.placement:
                results.append(None)
                continue
            for _ in range(2):
                found = outputs_of(model, spec, inputs)
                scheduler.step()
            results.append(torch.stack(found))
    return results


def outputs_after_a_refusal(
    context: RankContext, spec: ModelSpec, plan: ExecutionPlan, inputs: list[dict[str, Any]]
) -> tuple[str, torch.Tensor]:
    """What a step with one pass is told, and the predictions of a whole step after it."""
    model, scheduler = small_model(spec), SimpleNamespace(step=lambda: None)
    said = ""
    with parallelize(SimpleNamespace(transformer=model, scheduler=scheduler), plan, context):
        outputs_of(model, spec, inputs[:1])
        try:
            scheduler.step()
        except InputError as error:
            said = str(error)
        return said, torch.stack(outputs_of(model, spec, inputs))


def outputs_with_step_cache(
    context: RankContext, spec: ModelSpec, plan: ExecutionPlan, inputs: list[dict[str, Any]]
) -> torch.Tensor:
    """A plan put in force on a transformer that leaves out blocks by what the first one gives."""
    model = small_model(spec)
    model.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    pipeline = SimpleNamespace(transformer=model, scheduler=SimpleNamespace(step=lambda: None))
    with parallelize(pipeline, plan, context):
        return torch.stack(outputs_of(model, spec, inputs))


def latents_of_pipeline(
    context: RankContext,
    spec: ModelSpec,
    plan: ExecutionPlan,
    two: bool = False,
    guided: bool = True,
) -> torch.Tensor | None:
    """Final latents of the model's own pipeline; None on ranks that the plan doesn't use.

    With `two` it has a second transformer for the last steps.
    """
    key = f"family pipeline {spec.config_hash}"
    if key not in context.kept:
        context.kept[key] = load_pipeline(spec, None, context.device, "float32")
        context.kept[key].transformer = small_model(spec)
    pipeline, work = context.kept[key], plan.workload
    if two:
        second = small_model(spec)
        for weight in second.parameters():
            weight.data.mul_(0.9)
        pipeline = type(pipeline)(
            **pipeline.components | {"transformer_2": second}, boundary_ratio=0.5
        )
    unguided = work if guided else work.model_copy(update={"passes": 1})
    with parallelize(pipeline, plan, context):
        if context.rank not in plan.configuration.placement:
            return None
        return latents_of_call(pipeline, spec, unguided)
