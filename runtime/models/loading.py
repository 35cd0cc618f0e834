"""Pipelines to run: real weights from a folder, or random ones of the true architecture."""

import inspect
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn

from ditplan.profiles.errors import InputError
from ditplan.profiles.family import ModelFamily, family_of
from ditplan.profiles.files import path_text
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.workload import Workload
from ditplan.runtime.blocks import block_paths
from ditplan.runtime.groups import AxisGroup
from ditplan.runtime.models.inputs import InputShape, random_inputs
from ditplan.runtime.models.inspection import diffusers_class
from ditplan.runtime.models.saved_parts import load_parts
from ditplan.runtime.weights.loading import (
    Put,
    Wanted,
    dtypes_of,
    empty_model,
    everything,
    fill_from_folder,
    fill_with_random,
    nothing_put,
    only_blocks,
)
from ditplan.runtime.weights.sharded import loaded_sharded

DAMAGED = (
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
    TypeError,
    ValueError,
)
"""What diffusers, transformers and safetensors raise for files that they weren't written for."""

MOST_JSON_BYTES = 2**28
"""The largest in use are tokenizers of some 35 MB."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_pipeline(
    spec: ModelSpec,
    weights: Path | None,
    device: torch.device,
    dtype: str,
    blocks: Collection[int] | None = None,
    weight_group: AxisGroup | None = None,
) -> Any:
    """A diffusers pipeline of the model on `device`, without progress bar.

    Without `weights` it has random ones (the same on every rank) and no text encoders: it takes
    prompt embeddings, and its pictures are noise. With `blocks` its transformer has only those and
    what isn't in blocks. With `weight_group` each of these ranks has a piece of its blocks' weights
    alone: `shards_of` its transformer.

    Raises:
        InputError: the folder holds no such pipeline.
    """
    kind = DTYPES[dtype]
    if weights is None:
        pipeline = _random_pipeline(spec, device, kind, blocks, weight_group)
    else:
        _require_regular_files(weights)
        pipeline = _saved_pipeline(spec, weights, device, kind, blocks, weight_group)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def prompt_embeddings(
    spec: ModelSpec, workload: Workload, device: torch.device, seed: int
) -> dict[str, Any]:
    """Random embeddings in place of a prompt's, as arguments for the pipeline's call."""
    family = family_of(spec.transformer_class)
    return words_of(family, spec.config, workload, device, seed)


def words_of(
    family: ModelFamily,
    config: Mapping[str, Any],
    workload: Workload,
    device: torch.device,
    seed: int,
) -> dict[str, Any]:
    """The same for a transformer of a family and a config."""
    shapes = {
        name: dims
        for name, dims in family.prompt_inputs.items()
        if workload.guidance or not name.startswith("negative_")
    }
    sizes = InputShape(workload.batch, workload.text_tokens, 0, 0)
    dtype = DTYPES[workload.dtype]
    embeddings = random_inputs(shapes, sizes, config, device, dtype, seed, family)
    # some pipelines have words for it by default, and take words or embeddings, not both
    return embeddings | ({"negative_prompt": None} if workload.guidance else {})


def call_arguments(spec: ModelSpec, workload: Workload) -> dict[str, Any]:
    """What a call of the pipeline needs for a workload beside words, generator and output type."""
    return family_of(spec.transformer_class).call_arguments(spec.guidance_scale, workload)


def pictures_of(result: Any) -> Any:
    """The pictures, or videos, in what a pipeline's call returns."""
    return result.images if hasattr(result, "images") else result.frames


def _require_regular_files(folder: Path) -> None:
    """Refuses what a library would wait for when it reads the folder, or read without end.

    Raises:
        InputError: names what is neither a file nor a folder, or a text of gigabytes.
    """
    for parent, _, files in os.walk(folder):
        for name in files:
            path = Path(parent, name)
            if not path.is_file():
                raise InputError(f"{path_text(path)}: this is no regular file; remove it")
            if path.suffix == ".json" and (size := path.stat().st_size) > MOST_JSON_BYTES:
                raise InputError(
                    f"{path_text(path)}: is damaged: no model's JSON file has {size:,} bytes; "
                    "copy the weights anew"
                )


def _saved_pipeline(
    spec: ModelSpec,
    weights: Path,
    device: torch.device,
    dtype: torch.dtype,
    blocks: Collection[int] | None,
    weight_group: AxisGroup | None,
) -> Any:
    refusing = partial(refusing_damage, spec, weights)
    given = load_parts(weights, dtype, refusing, DAMAGED)
    if blocks is not None or weight_group is not None:
        folder = weights / "transformer"
        model_class = diffusers_class(spec.transformer_class)
        with refusing(*DAMAGED):
            model = empty_model(model_class, model_class.load_config(str(folder)), dtype)
        put = _put(spec, model, blocks, weight_group, device, dtypes_of(model, dtype))
        fill_from_folder(model, folder, device, dtype, _wanted(spec, model, blocks), put)
        given["transformer"] = model
    with refusing(*DAMAGED):
        pipeline: Any = diffusers_class(spec.pipeline_class).from_pretrained(
            str(weights), torch_dtype=dtype, local_files_only=True, **given
        )
        for component in pipeline.components.values():
            if isinstance(component, nn.Module) and component is not given.get("transformer"):
                component.to(device)
    return pipeline


@contextmanager
def refusing_damage(spec: ModelSpec, weights: Path, *kinds: type[Exception]) -> Iterator[None]:
    """Turns what libraries raise for damaged files into an InputError that names the folder.

    Raises:
        InputError: one of these kinds was raised.
    """
    try:
        yield
    except InputError:
        raise
    except kinds as error:
        raise InputError(
            f"{path_text(weights)}: can't be loaded as a {spec.pipeline_class} "
            f"({type(error).__name__}: {error})"
        ) from error


def _random_pipeline(
    spec: ModelSpec,
    device: torch.device,
    dtype: torch.dtype,
    blocks: Collection[int] | None,
    weight_group: AxisGroup | None,
) -> Any:
    transformer = empty_model(diffusers_class(spec.transformer_class), spec.config, dtype)
    put = _put(spec, transformer, blocks, weight_group, device, lambda _name: dtype)
    fill_with_random(transformer, device, dtype, _wanted(spec, transformer, blocks), put)
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


def _wanted(spec: ModelSpec, model: nn.Module, blocks: Collection[int] | None) -> Wanted:
    if blocks is None:
        return everything
    return only_blocks(block_paths(model, family_of(spec.transformer_class)), blocks)


def _put(
    spec: ModelSpec,
    model: nn.Module,
    blocks: Collection[int] | None,
    weight_group: AxisGroup | None,
    device: torch.device,
    dtype_of: Callable[[str], torch.dtype],
) -> Put:
    if weight_group is None:
        return nothing_put
    paths = block_paths(model, family_of(spec.transformer_class))
    held = [path for number, path in enumerate(paths) if blocks is None or number in blocks]
    return loaded_sharded(model, held, weight_group, device, dtype_of)


def random_model(
    class_name: str, config: dict[str, Any], device: torch.device, dtype: torch.dtype
) -> Any:
    """A model of diffusers with random weights, the same on every rank."""
    model = empty_model(diffusers_class(class_name), config, dtype)
    fill_with_random(model, device, dtype, everything)
    return model
