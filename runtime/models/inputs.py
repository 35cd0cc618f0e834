"""Inputs of a transformer by a family's names: their sizes, and random ones to measure with."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch

from ditplan.profiles.family import ModelFamily, family_of, number_of
from ditplan.profiles.model import ModelSpec


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
        edge = number_of(family.latents_per_token, config)
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
            int(getattr(self, dim)) if hasattr(self, dim) else number_of(dim, config)
            for dim in dims
        )


def latent_frames_per_token(family: ModelFamily, config: Mapping[str, Any]) -> int:
    """How many latent frames become one token."""
    name = family.frames_per_token
    return int(name) if name.isdecimal() else int(config.get(name) or 1)


def latents_shape(
    vae_config: Mapping[str, Any], batch: int, frames: int, height: int, width: int
) -> tuple[int, ...]:
    """What a VAE decodes: (B, C, H, W), or (B, C, F, H, W) for one of videos."""
    names = ("latent_channels", "z_dim")
    channels = next(int(vae_config[name]) for name in names if name in vae_config)
    of_videos = "temporal_compression_ratio" in vae_config or "temperal_downsample" in vae_config
    return (batch, channels, *((frames,) if of_videos else ()), height, width)


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
