"""What a diffusers model is: digest, tokens, parameters and FLOPs, counted without weights."""

import hashlib
import json
import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import diffusers
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ditplan.profiles.errors import InputError
from ditplan.profiles.family import ModelFamily, family_of
from ditplan.profiles.model import Attention, BlockRun, ModelSpec
from ditplan.profiles.workload import Workload
from ditplan.runtime.sequence import (
    answer_attention,
    lift_text_mask,
    matching_modules,
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


def diffusers_class(name: str) -> Any:
    """A class of diffusers by name.

    Raises:
        InputError: the installed diffusers has none of that name.
    """
    found = getattr(diffusers, name, None)
    if found is None:
        raise InputError(
            f"diffusers {diffusers.__version__} has no class {name}; install one that has it"
        )
    return found


@dataclass(frozen=True)
class InputShape:
    """Sizes from which the shapes of inputs follow; latent sizes are in latent pixels."""

    batch: int
    text_tokens: int
    latent_height: int
    latent_width: int
    image_tokens: int = 0
    latent_frames: int = 1
    latent_rows: int = 0
    latent_columns: int = 0

    @classmethod
    def of_tokens(
        cls,
        family: ModelFamily,
        config: Mapping[str, Any],
        batch: int,
        text_tokens: int,
        size: tuple[int, int, int],
    ) -> Self:
        """The sizes for so many (frames, rows, columns) of tokens."""
        frames, rows, columns = size
        edge = _number(family.latents_per_token, config)
        return cls(
            batch,
            text_tokens,
            rows * edge,
            columns * edge,
            frames * rows * columns,
            frames * latent_frames_per_token(family, config),
            rows,
            columns,
        )

    @classmethod
    def of_picture(
        cls,
        spec: ModelSpec,
        batch: int,
        text_tokens: int,
        height_px: int,
        width_px: int,
        frames: int = 1,
    ) -> Self:
        """The sizes for pictures of this many pixels and frames: rows and columns rounded down to
        whole tokens, frames up.
        """
        rows, columns = height_px // spec.pixels_per_token, width_px // spec.pixels_per_token
        size = (math.ceil(frames / spec.frames_per_token), rows, columns)
        family = family_of(spec.transformer_class)
        return cls.of_tokens(family, spec.config, batch, text_tokens, size)

    def shape(self, dims: tuple[str, ...], config: Mapping[str, Any]) -> tuple[int, ...]:
        """The shape that a family's dim names mean for a transformer of this config."""
        return tuple(
            int(getattr(self, dim)) if hasattr(self, dim) else _number(dim, config) for dim in dims
        )


def latent_frames_per_token(family: ModelFamily, config: Mapping[str, Any]) -> int:
    """How many latent frames become one token."""
    name = family.frames_per_token
    return int(name) if name.isdecimal() else int(config.get(name) or 1)


def pixels_per_latent(vae_config: Mapping[str, Any]) -> int:
    """The edge of the square of pixels that becomes a latent pixel."""
    for name in ("scale_factor_spatial", "spatial_compression_ratio"):
        if vae_config.get(name):
            return int(vae_config[name])
    levels = next(
        vae_config[name]
        for name in ("block_out_channels", "encoder_block_out_channels", "dim_mult")
        if name in vae_config
    )
    return int(2 ** (len(levels) - 1))


def latents_shape(
    vae_config: Mapping[str, Any], batch: int, frames: int, height: int, width: int
) -> tuple[int, ...]:
    """What a VAE decodes: (B, C, H, W), or (B, C, F, H, W) for one of videos."""
    names = ("latent_channels", "z_dim")
    channels = next(int(vae_config[name]) for name in names if name in vae_config)
    of_videos = "temporal_compression_ratio" in vae_config or "temperal_downsample" in vae_config
    return (batch, channels, *((frames,) if of_videos else ()), height, width)


def _number(name: str, config: Mapping[str, Any]) -> int:
    """What a family gives as a number or as a key of the config."""
    return int(name) if name.isdecimal() else int(config[name])


def random_inputs(
    shapes: Mapping[str, tuple[str, ...]],
    sizes: InputShape,
    config: Mapping[str, Any],
    device: torch.device,
    dtype: torch.dtype,
    seed: int = 0,
    family: ModelFamily | None = None,
) -> dict[str, Any]:
    """Random tensors of the family's shapes, the same for the same seed on every rank.

    With a `family` those that are no tensors of numbers are what it says: masks leave nothing out.
    """
    generator = torch.Generator().manual_seed(seed)
    result: dict[str, Any] = {}
    for name, dims in shapes.items():
        shape = sizes.shape(dims, config)
        value: Any
        if device.type == "meta":
            value = torch.empty(shape, device=device, dtype=dtype)
        else:
            value = torch.randn(shape, generator=generator).to(device, dtype)
        if family is not None:
            value = _of_kind(value, family.input_kinds.get(name))
        owner, _, item = name.partition(".")
        if item:
            result.setdefault(owner, {})[item] = value
        else:
            result[name] = value
    return result


def _of_kind(value: torch.Tensor, kind: str | None) -> Any:
    if kind == "mask":
        return torch.ones_like(value, dtype=torch.int64)
    if kind == "zeros":
        return torch.zeros_like(value, dtype=torch.int64)
    if kind == "pair":
        return value.cos(), value.sin()
    if kind == "sizes":
        batch, *sizes = value.shape
        return [[tuple(sizes)]] * batch
    return list(value) if kind == "list" else value


def block_runs(model: nn.Module, family: ModelFamily) -> list[tuple[str, list[str]]]:
    """The model's blocks in order of execution as runs of equal structure: (kind, module paths).

    A kind is the block's class name, numbered from the second structure of one class on.
    """
    kinds: dict[tuple[str, tuple[Any, ...]], str] = {}
    runs: list[tuple[str, list[str]]] = []
    for path in family.blocks:
        for index, block in enumerate(submodule(model, path).children()):
            name = type(block).__name__
            structure = tuple((key, tuple(value.shape)) for key, value in block.named_parameters())
            alike = sum(1 for class_name, _ in kinds if class_name == name)
            kind = kinds.setdefault((name, structure), f"{name}-{alike + 1}" if alike else name)
            if runs and runs[-1][0] == kind:
                runs[-1][1].append(f"{path}.{index}")
            else:
                runs.append((kind, [f"{path}.{index}"]))
    return runs


def inspect_folder(folder: Path, name: str, defaults: Workload | None = None) -> ModelSpec:
    """The spec of a diffusers pipeline saved in a folder; reads configs only, no weights.

    Raises:
        InputError: not such a folder, or a transformer that no family describes.
    """
    index = _read_json(folder / "model_index.json")
    if "transformer" not in index or "vae" not in index:
        raise InputError(
            f"{folder}: model_index.json names no transformer and VAE; "
            "expected a diffusion transformer"
        )
    encoders = [key for key, value in index.items() if key.startswith("text_encoder") and value[0]]
    return inspect_configs(
        name,
        transformer=_read_json(folder / "transformer" / "config.json"),
        vae=_read_json(folder / "vae" / "config.json"),
        scheduler=_read_json(folder / "scheduler" / "scheduler_config.json"),
        encoder_parameters=sum(_stored_parameters(folder / encoder) for encoder in encoders),
        defaults=defaults,
        pipeline_class=index.get("_class_name"),
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
    with torch.device("meta"):
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
        pixels_per_token=vae_scale * _number(family.latents_per_token, model.config),
        frames_per_token=family.frames_per_latent * latent_frames_per_token(family, model.config),
        blocks=tuple(
            BlockRun(
                kind=kind,
                count=len(paths),
                parameters=parameters[paths[0]],
                fixed_flops=linear.blocks[paths[0]].fixed,
                image_flops=linear.blocks[paths[0]].image,
                text_flops=linear.blocks[paths[0]].text,
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
    pixels = _number(usual.sample_size, model.config) * vae_scale
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
    """The linear FLOPs of each block by module path, and of everything outside the blocks."""

    blocks: dict[str, LinearFlops]
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
        image = (wide[key] - small[key]) / 32
        text = (wordy[key] - small[key]) / 32
        return LinearFlops(small[key] - 32 * image - texts[0] * text, image, text)

    blocks = {path: solved(path) for _, paths in block_runs(model, family) for path in paths}
    whole = solved("")
    outside = LinearFlops(
        whole.fixed - sum(b.fixed for b in blocks.values()),
        whole.image - sum(b.image for b in blocks.values()),
        whole.text - sum(b.text for b in blocks.values()),
    )
    return CountedModel(blocks, outside)


def _count_once(model: Any, family: ModelFamily, sizes: InputShape) -> dict[str, float]:
    """FLOPs of one forward by block path, "" for all, with self-attentions answered for nothing."""
    device = torch.device("meta")
    shapes = family.inputs_of(model.config)
    inputs = random_inputs(shapes, sizes, model.config, device, torch.float32, family=family)
    with ExitStack() as undo:
        lift_text_mask(model, family, lambda _masks: None, undo)
        for declared in family.self_attentions:
            for name, module in matching_modules(model, declared.modules):
                answer_attention(module, name, lambda query, _key, _value, _scale: query, undo)
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter:
            model(**inputs)
    counts = counter.get_flop_counts()
    root = type(model).__name__
    by_path = {
        path: float(sum(counts[f"{root}.{path}"].values()))
        for _, paths in block_runs(model, family)
        for path in paths
    }
    return by_path | {"": float(counter.get_total_flops())}


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


def _stored_parameters(folder: Path) -> int:
    """Parameters of a component, read from the headers of its safetensors files."""
    total = 0
    for path in folder.glob("*.safetensors"):
        try:
            with path.open("rb") as file:
                header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        except (OSError, ValueError, OverflowError, MemoryError) as error:
            raise InputError(f"{path}: is damaged ({error}); copy the weights anew") from None
        for key, tensor in header.items():
            size = 1
            for dim in tensor.get("shape", ()):
                size *= dim
            total += size if key != "__metadata__" else 0
    return total


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: can't be read ({error}); expected the folder of a diffusers pipeline"
        ) from None
    return content
