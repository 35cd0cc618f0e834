"""Calls of a pipeline that have all compiled and captured that requests will ask for."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ditplan.profiles.errors import InputError
from ditplan.profiles.family import family_of
from ditplan.profiles.limits import ModelLimits, workload_fault
from ditplan.profiles.plan import ExecutionPlan
from ditplan.profiles.record import validate
from ditplan.profiles.workload import Workload
from ditplan.runtime.models.loading import words_of

Size = tuple[int, int] | tuple[int, int, int]
"""Height and width in pixels, and the number of frames of a video."""


def workloads_of(
    plan: ExecutionPlan, sizes: Sequence[Size], limits: ModelLimits
) -> Iterator[Workload]:
    """What is to be warmed up: each size with each size of texts, in as few steps as show all.

    Raises:
        InputError: a size that the model can't do; says what would be right.
    """
    own, part = plan.workload, plan.configuration.pipefusion
    steps = min(own.steps, part.warmup_steps + 2 if part else 2)
    for size in sizes:
        height, width, frames = (*size, own.frames) if len(size) == 2 else size
        for tokens in plan.text_sizes or (own.text_tokens,):
            asked = {"height": height, "width": width, "frames": frames}
            fields = own.model_dump() | asked | {"steps": steps, "text_tokens": tokens}
            work = validate(Workload, fields, f"size {'x'.join(map(str, size))}")
            if wrong := workload_fault(limits, work):
                raise InputError(wrong)
            yield work


def warm_up_calls(pipeline: Any, works: Sequence[Workload]) -> None:
    """Makes a call for each workload, with random embeddings in place of prompts."""
    model = pipeline.transformer
    family, config = family_of(type(model).__name__), model.config
    scale = family.usual_of(config).guidance_scale
    for work in works:
        words = words_of(family, config, work, pipeline._execution_device, seed=0)
        call = family.call_arguments(scale, work)
        with torch.no_grad():
            pipeline(
                **words,
                **call,
                generator=torch.Generator().manual_seed(0),
                output_type="latent",
            )
