"""A model as the planner sees it: its blocks, their sizes and FLOPs, and what was measured."""

import math
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveInt

from ditplan.profiles.bounds import (
    MOST_BLOCKS,
    MOST_OPERATIONS,
    MOST_SECONDS,
    Batch,
    Blocks,
    Degree,
    Flops,
    Frames,
    MeasuredSeconds,
    Parameters,
    Pixels,
    Tokens,
    Width,
)
from ditplan.profiles.errors import Command, Setting
from ditplan.profiles.record import FrozenModel, Record
from ditplan.profiles.splits import Segment, split_sizes
from ditplan.profiles.workload import Dtype, Workload

Mode = Literal["eager", "compile", "graph", "compile+graph"]
Source = Literal["measured", "interpolated", "computed"]
AttentionKernel = Literal[
    "auto",
    "cpu",
    "flash",
    "cudnn",
    "efficient",
    "flash-attn-2",
    "flash-attn-3",
    "flash-attn-4",
]
"""Which implementation computes self-attention on a device; `auto` leaves it to torch."""


class Attention(FrozenModel):
    """A self-attention of a block over the given segments of the sequence.

    One that is `linear` keeps a state of heads x (head_dim + 1) x head_dim float32 numbers for each
    sample, which ranks add up, and its FLOPs are among those for each token.
    """

    heads: Width
    head_dim: Width
    segments: tuple[Segment, ...] = Field(min_length=1)
    linear: bool = False

    @property
    def state_bytes(self) -> int:
        """What ranks add up for each sample."""
        return 4 * self.heads * (self.head_dim + 1) * self.head_dim if self.linear else 0


class BlockRun(FrozenModel):
    """`count` blocks of one structure in a row.

    FLOPs count a multiply-add as two. `image_flops` and `text_flops` are for each token of that
    segment, `fixed_flops` for each sample, all without self-attention, whose FLOPs are 4 x heads x
    head_dim x queries x keys. `operations` launch a kernel each in an eager forward of one block.
    """

    kind: str
    count: Blocks
    parameters: Parameters = Field(gt=0)
    image_flops: Flops
    text_flops: Flops
    fixed_flops: Flops
    operations: PositiveInt = Field(le=MOST_OPERATIONS)
    attentions: tuple[Attention, ...] = Field(min_length=1)


class ModelSpec(Record):
    """A diffusers pipeline's facts: what is needed to count its tokens, FLOPs and bytes.

    `pixels_per_token` is the edge of the square of pixels that becomes one image token. `config` is
    the transformer's diffusers config, `config_hash` its digest; `vae_config` likewise. The FLOPs
    of the VAE's decoder are for a pixel.
    """

    kind: ClassVar[str] = "model spec"
    made_by: ClassVar[Command] = Command("profile", (Setting("model", "M"),))

    name: str
    family: str
    pipeline_class: str
    transformer_class: str
    config: dict[str, Any]
    config_hash: str
    vae_class: str
    vae_config: dict[str, Any]
    scheduler_class: str
    scheduler_config: dict[str, Any]
    defaults: Workload
    guidance_scale: float = Field(ge=0)
    pixels_per_token: Pixels
    frames_per_token: Frames = 1
    blocks: tuple[BlockRun, ...] = Field(min_length=1, max_length=MOST_BLOCKS)
    outside_parameters: Parameters
    outside_image_flops: Flops
    outside_text_flops: Flops
    encoder_parameters: Parameters
    vae_parameters: Parameters
    vae_flops_per_pixel: Flops

    @property
    def transformer_parameters(self) -> int:
        """Parameters of the whole transformer."""
        return self.outside_parameters + sum(run.count * run.parameters for run in self.blocks)

    @property
    def block_count(self) -> int:
        """How many blocks there are in all."""
        return sum(run.count for run in self.blocks)

    @property
    def is_linear(self) -> bool:
        """Whether all of its self-attention is linear."""
        return all(attention.linear for run in self.blocks for attention in run.attentions)

    @property
    def heads(self) -> int:
        """The fewest heads of any self-attention: the most that ulysses can split."""
        return min(attention.heads for run in self.blocks for attention in run.attentions)

    @property
    def width(self) -> int:
        """The widest hidden size that self-attention exchanges: heads x head_dim."""
        return max(
            attention.heads * attention.head_dim
            for run in self.blocks
            for attention in run.attentions
        )

    def image_tokens(self, workload: Workload) -> int:
        """Image tokens of one sample: rows x columns, rounded down, x latent frames."""
        rows = workload.height // self.pixels_per_token
        columns = workload.width // self.pixels_per_token
        frames = math.ceil(workload.frames / self.frames_per_token)
        return rows * columns * frames + workload.condition_tokens

    def text_tokens(self, workload: Workload) -> int:
        """Text tokens of one sample's sequence: none where text is only cross-attended to."""
        joint = any("text" in one.segments for run in self.blocks for one in run.attentions)
        return workload.text_tokens if joint else 0


class TimePoint(FrozenModel):
    """One measured duration.

    `part` is a block kind or one of `outside` (everything in the transformer that is not a block),
    `attention` (the largest self-attention of a block alone, on the device), `scheduler_step`,
    `vae_decode`, `text_encode`. `batch` counts samples in the call, tokens are those of one sample
    on this rank, and `key_tokens` those that self-attention sees (more than image + text when the
    sequence is split). `kernel` computed the self-attention. `host_s` is the time after which the
    call returned, while a GPU was still at work: launching takes that long.
    """

    part: str
    mode: Mode = "eager"
    kernel: AttentionKernel = "auto"
    batch: Batch
    image_tokens: Tokens
    text_tokens: Tokens
    key_tokens: Tokens
    median_s: MeasuredSeconds
    p95_s: MeasuredSeconds
    host_s: float | None = Field(default=None, ge=0, le=MOST_SECONDS)
    runs: PositiveInt


class PointRequest(FrozenModel):
    """What the planner asks to be measured of every kind of block and of what is outside of them.

    `whole` is the workload's shape; the share of one sample's tokens that one rank holds follows
    from `ranks`, over which the sequence is split. `key_ranks` of them have their keys attended to:
    1 to `ranks`. `side_tokens` of text are only cross-attended to. `modes` are the execution modes
    to measure.
    """

    batch: Batch
    height: Pixels
    width: Pixels
    frames: Frames = 1
    image_tokens: PositiveInt
    text_tokens: Tokens
    side_tokens: Tokens = 0
    ranks: Degree
    key_ranks: Degree
    modes: tuple[Mode, ...] = ("eager",)

    @property
    def image_share(self) -> int:
        """Image tokens on the rank that has most."""
        return split_sizes(self.image_tokens, self.ranks)[0]

    @property
    def text_share(self) -> int:
        """Text tokens on the rank that has most."""
        return split_sizes(self.text_tokens, self.ranks)[0] if self.text_tokens else 0

    @property
    def key_share(self) -> float:
        """How many times its own tokens a rank's queries attend to."""
        if self.key_ranks == self.ranks:
            return (self.image_tokens + self.text_tokens) / (self.image_share + self.text_share)
        return float(self.key_ranks)

    @property
    def key_tokens(self) -> int:
        """Tokens that self-attention over image and text sees."""
        return round((self.image_share + self.text_share) * self.key_share)


class ModelProfile(Record):
    """What one device was measured to need for each part of one model."""

    kind: ClassVar[str] = "model profile"
    made_by: ClassVar[Command] = Command("profile", (Setting("model", "M"),))

    model: str
    config_hash: str
    device: str
    dtype: Dtype
    software: dict[str, str]
    measured_on: str
    points: tuple[TimePoint, ...] = Field(min_length=1)
