"""What is known of a transformer class: data that the runtime's one mechanism reads."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt

from ditplan.profiles.errors import InputError
from ditplan.profiles.record import Noun, validate

FAMILIES = Path(__file__).parent / "families"


class Split(Noun):
    """A place where a tensor with a sequence dim appears whole and is cut to this rank's share.

    `place` is `input` (the root's argument `name`, a tensor or a list of tensors) or `output` (of
    submodule `name`). A negative `dim` counts from the last.
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


class Usual(Noun):
    """What is usually asked of the models whose config has the values of `when`.

    `sample_size` is the edge of the picture in latent pixels: a key of the config or a number.
    """

    when: dict[str, bool | int | str] = Field(default_factory=dict)
    sample_size: str
    steps: PositiveInt
    text_tokens: PositiveInt
    guidance_scale: float = Field(ge=0)


class ModelFamily(Noun):
    """A transformer class of diffusers.

    With `guidance` "batched" the pipeline doubles the batch, so that cfg parallelism splits it;
    with "embedded" the guidance scale is an input of the transformer, which runs once a step.
    `batched_inputs` are the root's arguments with a batch dim 0 (tensors or lists of tensors).
    `blocks` are the module lists in order of execution; `carried` are those arguments of a block
    that it returns for the next, in the order of what it returns. `latents_per_token` is the edge
    of the square of latent pixels that becomes an image token: a key of the transformer's config or
    a number. `text_length_argument` is the argument of the pipeline's call that says to how many
    tokens it pads a prompt, where that is all of the text. Of `usual` the first that fits a config
    holds.

    `inputs` gives the shapes of the root's tensors and `prompt_inputs` those of the pipeline's
    prompt embeddings (the negative ones only with batched guidance), each dim by name: `batch`,
    `text_tokens`, `image_tokens`, `latent_height`, `latent_width`, a key of the config, or a
    number. `inputs_when` names the key of the config that is true where a model has that input.
    """

    name: str
    transformer_class: str
    pipeline_class: str
    guidance: Literal["batched", "embedded"]
    latents_per_token: str
    text_length_argument: str | None = None
    usual: tuple[Usual, ...] = Field(min_length=1)
    inputs: dict[str, tuple[str, ...]]
    inputs_when: dict[str, str] = Field(default_factory=dict)
    prompt_inputs: dict[str, tuple[str, ...]]
    batched_inputs: tuple[str, ...]
    blocks: tuple[str, ...]
    carried: tuple[str, ...]
    splits: tuple[Split, ...]
    gathers: tuple[Gather, ...]
    self_attentions: tuple[SelfAttention, ...] = Field(min_length=1)

    def inputs_of(self, config: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
        """Those of `inputs` that a transformer of this config has."""
        return {
            name: dims
            for name, dims in self.inputs.items()
            if name not in self.inputs_when or config[self.inputs_when[name]]
        }

    def usual_of(self, config: Mapping[str, Any]) -> Usual:
        """What is usually asked of a transformer of this config.

        Raises:
            InputError: the family doesn't say.
        """
        for usual in self.usual:
            if all(config.get(key) == value for key, value in usual.when.items()):
                return usual
        raise InputError(
            f"family {self.name} doesn't say what is usually asked of a {self.transformer_class} "
            "of this config; add a `usual` without `when` to it"
        )


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
