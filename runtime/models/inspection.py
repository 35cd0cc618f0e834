"""What a diffusers model is: digest, tokens, parameters and FLOPs, counted without weights."""

import hashlib
import inspect
import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.configuration_utils import ConfigMixin
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ditplan.profiles.errors import InputError
from ditplan.profiles.family import ModelFamily, family_of, number_of, pixels_per_latent
from ditplan.profiles.files import is_text, path_text
from ditplan.profiles.model import Attention, BlockRun, ModelSpec
from ditplan.profiles.record import shortened
from ditplan.profiles.workload import Workload
from ditplan.runtime.blocks import block_runs
from ditplan.runtime.models.folder import (
    bounded_parameters,
    config_of,
    is_encoder,
    read_json,
    refusing_strange_configs,
    stored_parameters,
)
from ditplan.runtime.models.inputs import (
    InputShape,
    latent_frames_per_token,
    latents_shape,
    random_inputs,
)
from ditplan.runtime.models.operation_counter import OperationCounter
from ditplan.runtime.sequence.hooks import answer_attention, lift_text_mask
from ditplan.runtime.takeover import (
    carried_by,
    handed_on,
    matching_modules,
    names_arguments,
    replace_forward,
    submodule,
)


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config as JSON values, without what diffusers adds (`_class_name`, versions, paths)."""
    kept = {key: value for key, value in config.items() if not key.startswith("_")}
    plain: dict[str, Any] = json.loads(json.dumps(kept, default=str))
    return plain


def config_digest(config: Mapping[str, Any]) -> str:
    """A short digest of a config: equal for equal architectures, whatever their weights."""
    text = json.dumps(plain_config(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def usual_config(cls: type[Any]) -> dict[str, Any]:
    """What a class of diffusers takes for what a config doesn't name, as JSON values."""
    parameters = inspect.signature(cls.__init__).parameters.values()
    return plain_config(
        {one.name: one.default for one in parameters if one.default is not inspect.Parameter.empty}
    )


def diffusers_class(name: str) -> Any:
    """A class of diffusers by name.

    Raises:
        InputError: the installed diffusers has none of that name, or none with a config.
    """
    found = getattr(diffusers, name, None)
    if not (isinstance(found, type) and issubclass(found, ConfigMixin)):
        raise InputError(
            f"diffusers {diffusers.__version__} has no class {shortened(name)}; install one that "
            "has it"
        )
    return found


def inspect_folder(folder: Path, name: str, defaults: Workload | None = None) -> ModelSpec:
    """The spec of a diffusers pipeline saved in a folder; reads configs only, no weights.

    Raises:
        InputError: not such a folder, or a transformer that no family describes.
    """
    where = path_text(folder)
    if not is_text(name):
        raise InputError(f"{where}: its name isn't Unicode text; rename the folder")
    index = read_json(folder / "model_index.json")
    if "transformer" not in index or "vae" not in index:
        raise InputError(
            f"{where}: model_index.json names no transformer and VAE; "
            "expected a diffusion transformer"
        )
    pipeline_class = index.get("_class_name")
    if not isinstance(pipeline_class, str | None):
        given = shortened(pipeline_class)
        raise InputError(f"{where}: `_class_name` of model_index.json names no pipeline: {given}")
    encoders = [key for key, value in index.items() if is_encoder(key, value)]
    transformer = config_of(folder / "transformer" / "config.json")
    with refusing_strange_configs(where, transformer["_class_name"]):
        return inspect_configs(
            name,
            transformer=transformer,
            vae=config_of(folder / "vae" / "config.json"),
            scheduler=config_of(folder / "scheduler" / "scheduler_config.json", finite=False),
            encoder_parameters=sum(stored_parameters(folder / encoder) for encoder in encoders),
            defaults=defaults,
            pipeline_class=pipeline_class,
        )


def inspect_configs(
    name: str,
    transformer: Mapping[str, Any],
    vae: Mapping[str, Any],
    scheduler: Mapping[str, Any],
    encoder_parameters: int,
    defaults: Workload | None = None,
    guidance_scale: float | None = None,
    pipeline_class: str | None = None,
) -> ModelSpec:
    """The spec of a pipeline, given its parts' diffusers configs, each with `_class_name`.

    What isn't given of the last three is what the family says is usual.
    """
    family = family_of(transformer["_class_name"])
    with torch.device("meta"), bounded_parameters():
        model = diffusers_class(family.transformer_class).from_config(dict(transformer)).eval()
        decoder = diffusers_class(vae["_class_name"]).from_config(dict(vae)).eval()
    vae_scale = pixels_per_latent(decoder.config)
    linear = _count_linear_flops(model, family)
    parameters = {path: _parameters(submodule(model, path)) for path in linear.blocks}
    if guidance_scale is None:
        guidance_scale = family.usual_of(model.config).guidance_scale
    return ModelSpec(
        name=name,
        family=family.name,
        pipeline_class=pipeline_class or family.pipeline_class,
        transformer_class=family.transformer_class,
        config=plain_config(model.config),
        config_hash=config_digest(model.config),
        vae_class=vae["_class_name"],
        vae_config=plain_config(decoder.config),
        scheduler_class=scheduler["_class_name"],
        scheduler_config=plain_config(scheduler),
        defaults=defaults or _usual_workload(model, family, vae_scale),
        guidance_scale=guidance_scale,
        pixels_per_token=vae_scale * number_of(family.latents_per_token, model.config),
        frames_per_token=family.frames_per_latent * latent_frames_per_token(family, model.config),
        blocks=tuple(
            BlockRun(
                kind=kind,
                count=len(paths),
                parameters=parameters[paths[0]],
                fixed_flops=linear.blocks[paths[0]].fixed,
                image_flops=linear.blocks[paths[0]].image,
                text_flops=linear.blocks[paths[0]].text,
                operations=linear.operations[paths[0]],
                attentions=_attentions(model, family, paths[0]),
            )
            for kind, paths in block_runs(model, family)
        ),
        outside_parameters=_parameters(model) - sum(parameters.values()),
        outside_image_flops=linear.outside.image,
        outside_text_flops=linear.outside.text,
        encoder_parameters=encoder_parameters,
        vae_parameters=_parameters(decoder),
        vae_flops_per_pixel=_decoder_flops(decoder, vae_scale),
    )


def _usual_workload(model: Any, family: ModelFamily, vae_scale: int) -> Workload:
    usual = family.usual_of(model.config)
    pixels = number_of(usual.sample_size, model.config) * vae_scale
    return Workload(
        height=usual.height or pixels,
        width=usual.width or pixels,
        frames=usual.frames,
        steps=usual.steps,
        passes=1 if family.guidance == "embedded" else 2,
        text_tokens=usual.text_tokens,
    )


@dataclass(frozen=True)
class LinearFlops:
    """FLOPs without self-attention: for one sample, and more for each image and each text token."""

    fixed: float
    image: float
    text: float


@dataclass(frozen=True)
class CountedModel:
    """The linear FLOPs and the operations of each block by module path, and the linear FLOPs of
    everything outside the blocks.
    """

    blocks: dict[str, LinearFlops]
    operations: dict[str, int]
    outside: LinearFlops


def _count_linear_flops(model: Any, family: ModelFamily) -> CountedModel:
    """Counts at three input sizes: the parts per sample, image and text token follow exactly.

    Text that is only cross-attended to has its usual length, and counts with the image tokens that
    attend to it.
    """
    texts = (32, 64) if family.splits_text else (family.usual_of(model.config).text_tokens,) * 2
    small, wide, wordy = (
        _count_once(
            model, family, InputShape.of_tokens(family, model.config, 1, text, (1, 2, columns))
        )
        for text, columns in ((texts[0], 16), (texts[0], 32), (texts[1], 16))
    )

    def solved(key: str) -> LinearFlops:
        image = (wide.flops[key] - small.flops[key]) / 32
        text = (wordy.flops[key] - small.flops[key]) / 32
        return LinearFlops(small.flops[key] - 32 * image - texts[0] * text, image, text)

    blocks = {path: solved(path) for _, paths in block_runs(model, family) for path in paths}
    whole = solved("")
    outside = LinearFlops(
        whole.fixed - sum(b.fixed for b in blocks.values()),
        whole.image - sum(b.image for b in blocks.values()),
        whole.text - sum(b.text for b in blocks.values()),
    )
    return CountedModel(blocks, small.operations, outside)


@dataclass(frozen=True)
class Counts:
    """What one forward does, by block path: FLOPs, "" for all, and operations."""

    flops: dict[str, float]
    operations: dict[str, int]


def _count_once(model: Any, family: ModelFamily, sizes: InputShape) -> Counts:
    """Counts one forward, with self-attentions answered for nothing.

    Of blocks that are alike and follow each other one is run, and counts for all.
    """
    device = torch.device("meta")
    first_of = {path: paths[0] for _, paths in block_runs(model, family) for path in paths}
    shapes = family.inputs_of(model.config)
    inputs = random_inputs(shapes, sizes, model.config, device, torch.float32, family=family)
    with ExitStack() as undo:
        lift_text_mask(model, family, lambda _masks: None, undo)
        for declared in family.self_attentions:
            for name, module in matching_modules(model, declared.modules):
                answer_attention(module, name, lambda query, _key, _value, _scale: query, undo)
        for path, first in first_of.items():
            if path != first:
                _hand_on(submodule(model, path), family, undo)
        counter = FlopCounterMode(display=False)
        operations = OperationCounter(counter.mod_tracker)
        with torch.no_grad(), counter, operations:
            model(**inputs)
    counts, root = counter.get_flop_counts(), type(model).__name__
    of_first = {path: float(sum(counts[f"{root}.{path}"].values())) for path in first_of.values()}
    flops = {path: of_first[first] for path, first in first_of.items()}
    outside = float(counter.get_total_flops()) - sum(of_first.values())
    return Counts(
        flops=flops | {"": outside + sum(flops.values())},
        operations={path: operations.counts[f"{root}.{first}"] for path, first in first_of.items()},
    )


def _hand_on(block: nn.Module, family: ModelFamily, undo: ExitStack) -> None:
    """Has a block leave everything as it is."""
    named = names_arguments(block)

    def forward(*args: Any, **kwargs: Any) -> Any:
        return handed_on(carried_by(family.carried, named(*args, **kwargs)))

    replace_forward(block, forward, undo)


def _attentions(model: nn.Module, family: ModelFamily, block: str) -> tuple[Attention, ...]:
    declared = [(one.modules, one.segments, False) for one in family.self_attentions]
    if family.rows:
        declared.append((family.rows.linear_attentions, (family.rows.segment,), True))
    found = []
    for pattern, segments, linear in declared:
        for name, module in matching_modules(model, pattern):
            if name.startswith(f"{block}."):
                attention: Any = module
                heads = int(attention.heads)
                head_dim = int(attention.inner_dim) // heads
                found.append(
                    Attention(heads=heads, head_dim=head_dim, segments=segments, linear=linear)
                )
    return tuple(found)


def _decoder_flops(decoder: Any, scale: int) -> float:
    """FLOPs of decoding a pixel, counted at 256 x 256 (attention grows faster with size)."""
    shape = latents_shape(decoder.config, 1, 1, 256 // scale, 256 // scale)
    latents = torch.empty(shape, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        decoder.decode(latents)
    return float(counter.get_total_flops()) / 256**2


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
