"""Pipelines to run: real weights from a folder, or random ones of the true architecture."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from ditplan.profiles.errors import InputError
from ditplan.profiles.family import family_of
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.workload import Workload
from ditplan.runtime.inspection import InputShape, diffusers_class, random_inputs

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_pipeline(spec: ModelSpec, weights: Path | None, device: torch.device, dtype: str) -> Any:
    """A diffusers pipeline of the model on `device`, without progress bar.

    Without `weights` it has random ones (the same on every rank) and no text encoders: it takes
    prompt embeddings, and its pictures are noise.

    Raises:
        InputError: the folder holds no such pipeline.
    """
    if weights is None:
        pipeline = _random_pipeline(spec, device, DTYPES[dtype])
    else:
        try:
            pipeline = diffusers_class(spec.pipeline_class).from_pretrained(
                str(weights), torch_dtype=DTYPES[dtype], local_files_only=True
            )
        except (OSError, ValueError) as error:
            raise InputError(
                f"{weights}: can't be loaded as a {spec.pipeline_class}: {error}"
            ) from error
        pipeline = pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def prompt_embeddings(
    spec: ModelSpec, workload: Workload, device: torch.device, seed: int
) -> dict[str, torch.Tensor]:
    """Random embeddings in place of a prompt's, as arguments for the pipeline's call."""
    shapes = {
        name: dims
        for name, dims in family_of(spec.transformer_class).prompt_inputs.items()
        if workload.guidance or not name.startswith("negative_")
    }
    sizes = InputShape(workload.batch, workload.text_tokens, 0, 0)
    return random_inputs(shapes, sizes, spec.config, device, DTYPES[workload.dtype], seed)


def call_arguments(spec: ModelSpec, workload: Workload) -> dict[str, Any]:
    """What a call of the pipeline needs for a workload beside words, generator and output type."""
    family = family_of(spec.transformer_class)
    guided = workload.guidance or family.guidance == "embedded"
    arguments = {
        "height": workload.height,
        "width": workload.width,
        "num_inference_steps": workload.steps,
        "guidance_scale": spec.guidance_scale if guided else 1.0,
    }
    if family.text_length_argument:
        arguments[family.text_length_argument] = workload.text_tokens
    return arguments


def _random_pipeline(spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> Any:
    transformer = random_model(spec.transformer_class, spec.config, device, dtype)
    vae = random_model(spec.vae_class, spec.vae_config, device, dtype)
    scheduler = diffusers_class(spec.scheduler_class).from_config(spec.scheduler_config)
    pipeline_class = diffusers_class(spec.pipeline_class)
    parts = {"transformer": transformer, "vae": vae, "scheduler": scheduler}
    required = [
        name
        for name, parameter in inspect.signature(pipeline_class).parameters.items()
        if parameter.default is inspect.Parameter.empty
    ]
    return pipeline_class(**(dict.fromkeys(required) | parts))


def random_model(
    class_name: str, config: dict[str, Any], device: torch.device, dtype: torch.dtype
) -> Any:
    """A model of diffusers with its own random initialization, the same on every rank.

    Weights are those of float32 cast to `dtype`, of which never more than one layer is there.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        with torch.device(device), _casting_layers(dtype):
            model = diffusers_class(class_name).from_config(config)
    # diffusers' own `to` advises against casting weights that were loaded; these are random
    return nn.Module.to(model, device=device, dtype=dtype).eval()


@contextmanager
def _casting_layers(dtype: torch.dtype) -> Iterator[None]:
    """Has each module cast as soon as it becomes part of another, whole and initialized."""

    def cast(_parent: nn.Module, _name: str, child: nn.Module | None) -> None:
        if child is not None:
            nn.Module.to(child, dtype=dtype)

    hook = register_module_module_registration_hook(cast)
    try:
        yield
    finally:
        hook.remove()
