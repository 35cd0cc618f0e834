"""What is known of a transformer class: data that the runtime's one mechanism reads."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from ditplan.profiles.errors import InputError, one_line
from ditplan.profiles.files import parse_toml, path_text, read_text
from ditplan.profiles.record import FrozenModel, validate
from ditplan.profiles.workload import Workload

InputKind = Literal["mask", "zeros", "pair", "sizes", "list"]
FAMILIES = Path(__file__).parent / "families"
FACTORS_OF_VAES = ("scale_factor_spatial", "spatial_compression_ratio")
LEVELS_OF_VAES = ("block_out_channels", "encoder_block_out_channels", "dim_mult")
LARGEST_FACTOR = 1024


class Split(FrozenModel):
    """A place where a tensor with a sequence dim appears whole and is cut to this rank's share.

    `place` is `input` (the root's argument `name`), `output` (of submodule `name`), `entry` (the
    argument `name` of the first block of the list `blocks`) or `every` (that of each of its
    blocks). What is cut is a tensor or all of a list of tensors; with `item` only that one of a
    list, with `ndim` only tensors of so many dims. A negative `dim` counts from the last.
    """

    place: Literal["input", "output", "entry", "every"]
    name: str
    segment: str
    dim: int = 1
    blocks: str = ""
    item: int | None = None
    ndim: int | None = None


class Count(FrozenModel):
    """An argument of every block that counts tokens from the first of `segment` on.

    What the block does with so many of its tokens each rank does with those of them that it has.
    """

    name: str
    segment: str


class Gather(FrozenModel):
    """The submodule whose output is put together again from all ranks' shares of its segments.

    `name` is its path, in which -1 stands for the last of a list.
    """

    name: str
    segments: tuple[str, ...] = Field(min_length=1)
    dim: int = 1


class SelfAttention(FrozenModel):
    """Self-attention modules and what they attend over.

    `modules` is a path pattern in which `*` stands for one path element. `segments` are the pieces
    of the sequence in the order in which each rank holds its share of them.
    """

    modules: str
    segments: tuple[str, ...]


class TextMask(FrozenModel):
    """A mask of tokens that self-attention leaves out.

    `input` is the root's argument, (B, tokens of `segment`) and true for tokens that count.
    `argument` is that of the blocks which tells attention of it on one device. With `handed_on` the
    root needs none itself: what it makes of it besides may not be captured. Without an `input`
    the root makes one like it for the blocks, where samples are of unlike lengths.
    """

    input: str | None = None
    argument: str
    segment: str = "text"
    handed_on: bool = False


class Rows(FrozenModel):
    """What of a model needs the picture to be split in whole rows of `segment`.

    The root's argument `input` is (..., height, width) of latents, and `argument` that of the
    blocks which says how many rows of tokens they have. `linear_attentions` and `convolutions`
    (3x3) are path patterns of modules in blocks.
    """

    segment: str
    input: str
    argument: str
    linear_attentions: str
    convolutions: str


class Usual(FrozenModel):
    """What is usually asked of the models whose config has the values of `when`.

    `sample_size` is the edge of the picture in latent pixels: a key of the config or a number.
    Where pictures aren't square, `height` and `width` are theirs in pixels.
    """

    when: dict[str, bool | int | str] = Field(default_factory=dict)
    sample_size: str
    height: PositiveInt | None = None
    width: PositiveInt | None = None
    frames: PositiveInt = 1
    frames_per_s: float | None = Field(default=None, gt=0, le=1000)
    steps: PositiveInt
    text_tokens: PositiveInt
    guidance_scale: float = Field(ge=0)

    @model_validator(mode="after")
    def _videos_have_a_frame_rate(self) -> Self:
        if self.frames > 1 and self.frames_per_s is None:
            raise ValueError("a model of videos needs frames_per_s, how fast they are shown")
        return self


class ModelFamily(FrozenModel):
    """A transformer class of diffusers.

    With `guidance` "batched" the pipeline doubles the batch, so that cfg parallelism splits it;
    with "calls" it calls the transformer for each pass, told apart by diffusers' `cache_context`,
    so that cfg parallelism splits the calls; with "embedded" the guidance scale is an input of the
    transformer, which runs once a step. `batched_inputs` are the root's arguments with a batch dim
    0 (tensors, or lists or dicts of them) or, where their kind is `list` or `sizes`, an entry for
    each sample; `whole_inputs` are those that every rank gets as they are, `refused_inputs` those
    that ranks can't share out, with the reason. `a.b` is item b of the dict a. A call that gives
    anything else is refused, so together with the `splits` these are all that the root takes.

    `blocks` are the module lists in order of execution; `carried` are those arguments of a block
    that it returns for the next, in the order of what it returns, and `block_arguments` those that
    need nothing done: made of what is split already, or the same for all tokens. `counts` are those
    that count tokens. `adapters` are the attention processors that, after the self-attention,
    attend once more, from image tokens to those of the given segments and then to keys that
    every rank has (IP-Adapter). `latents_per_token` is the edge
    of the square of latent pixels that becomes an image token: a key of the transformer's config or
    a number; so is `frames_per_token` (1 where the config has none), which counts latent frames, of
    which each stands for `frames_per_latent` frames of a video. `long_skips` is the argument by
    which a block gets what its mirror returned, which the folded schedule keeps on one stage; no
    other can run with pipefusion. `no_pipefusion` says why a model's patches
    can't be pipelined; those that text doesn't go with have a token of it on each rank where blocks
    can't do without any (`needs_text`), which counts for nothing. `projection` is the module that
    makes the prediction of each image token, where it isn't the one whose output is gathered.

    Of a pipeline's call, `guidance_argument` takes the guidance scale, `text_length_argument` says
    to how many tokens it pads or cuts a prompt, where that is all of the text, and `call` is always
    given. `text_varies` where it doesn't pad, so that texts are as long as prompts are; a prompt
    has `template_tokens` more than its own.
    Of `usual` the first that fits a config holds.

    `inputs` gives the shapes of the root's tensors (`a.b` is item b of the dict a) and
    `prompt_inputs` those of the pipeline's prompt embeddings (the negative ones only with
    guidance), each dim by name: `batch`, `text_tokens`, `image_tokens`, `latent_frames`,
    `latent_height`, `latent_width`, `latent_rows`, `latent_columns` (of tokens), a key of the
    config, or a number. `input_kinds` says what is no tensor of numbers: a `mask`, `zeros`, a
    `pair` of tensors, a `list` with a tensor for each sample, or `sizes`, the dims themselves for
    each. `inputs_when` names the key of the config that is true where a model has that input.
    """

    name: str
    transformer_class: str
    pipeline_class: str
    guidance: Literal["batched", "calls", "embedded"]
    guidance_argument: str = "guidance_scale"
    latents_per_token: str
    frames_per_latent: PositiveInt = 1
    frames_per_token: str = "1"
    call: dict[str, bool | int | str] = Field(default_factory=dict)
    text_length_argument: str | None = None
    usual: tuple[Usual, ...] = Field(min_length=1)
    inputs: dict[str, tuple[str, ...]]
    input_kinds: dict[str, Literal["mask", "zeros", "pair", "sizes", "list"]] = Field(
        default_factory=dict
    )
    inputs_when: dict[str, str] = Field(default_factory=dict)
    prompt_inputs: dict[str, tuple[str, ...]]
    batched_inputs: tuple[str, ...]
    whole_inputs: tuple[str, ...] = ()
    refused_inputs: dict[str, str] = Field(default_factory=dict)
    blocks: tuple[str, ...]
    carried: tuple[str, ...]
    block_arguments: tuple[str, ...] = ()
    splits: tuple[Split, ...]
    counts: tuple[Count, ...] = ()
    adapters: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    gathers: tuple[Gather, ...]
    self_attentions: tuple[SelfAttention, ...] = ()
    rows: Rows | None = None
    text_mask: TextMask | None = None
    text_varies: bool = False
    template_tokens: int = Field(default=0, ge=0)
    long_skips: str | None = None
    no_pipefusion: str | None = None
    needs_text: bool = False
    projection: str | None = None

    @property
    def inputs_by_sample(self) -> frozenset[str]:
        """The inputs that are lists with an entry for each sample."""
        kinds = ("list", "sizes")
        return frozenset(name for name, kind in self.input_kinds.items() if kind in kinds)

    @property
    def named_inputs(self) -> frozenset[str]:
        """The root's arguments, or items of them, of which the family says what ranks get."""
        cut = (split.name for split in self.splits if split.place == "input")
        return frozenset((*self.batched_inputs, *self.whole_inputs, *cut, "return_dict"))

    @property
    def named_arguments(self) -> frozenset[str]:
        """The arguments of blocks of which the family says what ranks get."""
        found = {split.name for split in self.splits if split.place in ("entry", "every")}
        found |= {*self.carried, *self.block_arguments, *(count.name for count in self.counts)}
        found |= {part.argument for part in (self.rows, self.text_mask) if part}
        return frozenset(found | ({self.long_skips} if self.long_skips else set()))

    @property
    def rounds_text(self) -> bool:
        """Whether texts can be lengthened, with a mask that has attention leave out what is added:
        where they are of any length.
        """
        return self.text_varies and self.text_mask is not None and self.text_mask.input is not None

    @property
    def splits_text(self) -> bool:
        """Whether text is part of the sequence; where it isn't, every rank has all of it."""
        return any(split.segment == "text" for split in self.splits)

    def inputs_of(self, config: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
        """Those of `inputs` that a transformer of this config has."""
        return {
            name: dims
            for name, dims in self.inputs.items()
            if name not in self.inputs_when or config.get(self.inputs_when[name])
        }

    def call_arguments(self, guidance_scale: float, workload: Workload) -> dict[str, Any]:
        """What a call of the pipeline needs for a workload beside words, generator and output type,
        with the guidance scale that the model usually has.
        """
        guided = workload.guidance or self.guidance == "embedded"
        arguments: dict[str, Any] = {
            "height": workload.height,
            "width": workload.width,
            "num_inference_steps": workload.steps,
            self.guidance_argument: guidance_scale if guided else 1.0,
        }
        if self.frames_per_latent > 1:
            arguments["num_frames"] = workload.frames
        if self.text_length_argument:
            arguments[self.text_length_argument] = workload.text_tokens
        return arguments | self.call

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


def family_names() -> tuple[str, ...]:
    """The names of all shipped families, which are those of their files."""
    return tuple(sorted(path.stem for path in FAMILIES.glob("*.toml")))


@functools.cache
def load_families() -> dict[str, ModelFamily]:
    """All shipped families by transformer class name.

    Raises:
        InputError: as `load_family`.
    """
    families = {}
    for path in sorted(FAMILIES.glob("*.toml")):
        family = load_family(path)
        families[family.transformer_class] = family
    return families


def load_family(path: Path) -> ModelFamily:
    """Reads a family.

    Raises:
        InputError: names the file, and the line or the field that is wrong.
    """
    where, remedy = path_text(path), "CONTRIBUTING.md says what a family holds"
    text = read_text(path, "a family of models, in TOML")
    return validate(ModelFamily, parse_toml(text, where, "family", remedy), where, remedy)


def family_of(transformer_class: str) -> ModelFamily:
    """The family of a diffusers transformer class.

    Raises:
        InputError: none is shipped for it.
    """
    family = known_family(transformer_class)
    if family is None:
        raise InputError(
            f"{one_line(transformer_class, 60)}: no family describes this transformer class; there "
            f"are {', '.join(one.name for one in load_families().values())} (CONTRIBUTING.md says "
            "how to add one)"
        )
    return family


@functools.cache
def known_family(transformer_class: str) -> ModelFamily | None:
    """The family of a diffusers transformer class; None if none is shipped for it.

    Of the shipped files those that name the class are parsed: a job needs a single one.

    Raises:
        InputError: as `load_family`.
    """
    for path in sorted(FAMILIES.glob("*.toml")):
        if transformer_class in read_text(path, "a family of models, in TOML"):
            family = load_family(path)
            if family.transformer_class == transformer_class:
                return family
    return None


def number_of(name: str, config: Mapping[str, Any]) -> int:
    """What a family gives as a number or as a key of the config."""
    return int(name) if name.isdecimal() else int(config[name])


def pixels_per_latent(vae_config: Mapping[str, Any]) -> int:
    """The edge of the square of pixels that becomes a latent pixel.

    Raises:
        InputError: the configuration doesn't say.
    """
    for name in FACTORS_OF_VAES:
        if isinstance(edge := vae_config.get(name), int) and 0 < edge <= LARGEST_FACTOR:
            return edge
    for name in LEVELS_OF_VAES:
        levels = vae_config.get(name)
        if isinstance(levels, list | tuple) and 0 < len(levels) <= LARGEST_FACTOR.bit_length():
            return int(2 ** (len(levels) - 1))
    raise InputError(
        f"the VAE's configuration says by none of {', '.join((*FACTORS_OF_VAES, *LEVELS_OF_VAES))} "
        "how many pixels a latent pixel stands for"
    )
