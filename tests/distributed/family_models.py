"""A small transformer of each family: five heads, so that nothing divides by 2, 3 or 4."""

from ditplan.profiles.model import ModelSpec
from ditplan.testing.small_models import (
    COGVIDEOX_VAE,
    DDIM,
    HUNYUAN_VIDEO_VAE,
    UNEVEN,
    VIDEO_VAE,
    small_model,
    transformers,
)
from tests.distributed.small_models import small_sd3

__all__ = [
    "COGVIDEOX_VAE",
    "DDIM",
    "HUNYUAN_VIDEO_VAE",
    "NAMES",
    "TRANSFORMERS",
    "VIDEOS",
    "VIDEO_VAE",
    "small",
]
VIDEOS = ("wan", "qwen-image")
TRANSFORMERS = transformers(*UNEVEN)


def small(name: str) -> ModelSpec:
    """The spec of a small model."""
    if name == "sd3.5":
        return small_sd3(dual_attention_layers=[0, 2])
    return small_model(name)


NAMES = ("sd3", "sd3.5", *(name for name in TRANSFORMERS if name != "sd3"))
