"""What is known of a transformer class: data that the runtime's one mechanism reads."""

import tomllib
from pathlib import Path
from typing import Literal

from pydantic import Field

from ditplan.profiles.errors import InputError
from ditplan.profiles.record import Noun, validate

FAMILIES = Path(__file__).parent / "families"


class Split(Noun):
    """A place where a tensor with a sequence dim appears whole and is cut to this rank's share.

    `place` is `input` (the root's argument `name`, a tensor or a list of tensors) or `output` (of
    submodule `name`).
    """

    place: Literal["input", "output"]
    name: str
    segment: str
    dim: int = 1


class Gather(Noun):
    """The submodule whose output is put together again from all ranks' shares."""

    name: str
    segment: str
    dim: int = 1


class SelfAttention(Noun):
    """Self-attention modules and what they attend over.

    `modules` is a path pattern in which `*` stands for one path element. `segments` are the pieces
    of the sequence in the order in which each rank holds its share of them.
    """

    modules: str
    segments: tuple[str, ...]


class ModelFamily(Noun):
    """A transformer class of diffusers.

    `batched_inputs` are the root's arguments with a batch dim 0 (tensors or lists of tensors); with
    `guidance` "batched" the pipeline doubles it, so that cfg parallelism splits it. `blocks` are
    the module lists in order of execution. `inputs` gives the shapes of the root's tensors and
    `prompt_inputs` those of the pipeline's prompt embeddings (the negative ones only with
    guidance), each dim by name: `batch`, `text_tokens`, `latent_height`, `latent_width`, or a key
    of the transformer's config.
    """

    name: str
    transformer_class: str
    pipeline_class: str
    guidance: Literal["batched"]
    inputs: dict[str, tuple[str, ...]]
    prompt_inputs: dict[str, tuple[str, ...]]
    batched_inputs: tuple[str, ...]
    blocks: tuple[str, ...]
    splits: tuple[Split, ...]
    gathers: tuple[Gather, ...]
    self_attentions: tuple[SelfAttention, ...] = Field(min_length=1)


def load_families() -> dict[str, ModelFamily]:
    """All shipped families by transformer class name."""
    families = {}
    for path in sorted(FAMILIES.glob("*.toml")):
        family = validate(ModelFamily, tomllib.loads(path.read_text(encoding="utf-8")), str(path))
        families[family.transformer_class] = family
    return families


def family_of(transformer_class: str) -> ModelFamily:
    """The family of a diffusers transformer class.

    Raises:
        InputError: none is shipped for it.
    """
    families = load_families()
    if transformer_class not in families:
        raise InputError(
            f"{transformer_class}: no family describes this transformer class; there are "
            f"{', '.join(families)} (CONTRIBUTING.md says how to add one)"
        )
    return families[transformer_class]
