"""A configuration: everything that decides how a model runs on GPUs, as one value.

What the search prices, what a plan runs and what a runner-up was are configurations.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

from ditplan.profiles.bounds import (
    MOST_BLOCKS,
    MOST_ORDER,
    Blocks,
    Patches,
    RankNumber,
    Steps,
)
from ditplan.profiles.mesh import AXES, Mesh, placement_of
from ditplan.profiles.model import AttentionKernel, Mode
from ditplan.profiles.record import FrozenModel, shortened

RingVariant = Literal["pass", "bidirectional", "gather"]
Schedule = Literal["linear", "folded"]
Weights = Literal["replicated", "sharded"]


class PipeFusion(FrozenModel):
    """Patch-level pipelining: how many blocks each stage has, patches the image is cut into.

    With the "linear" schedule a patch comes by each stage once. With the "folded" one it goes
    there and back: a stage has blocks and their mirrors, the last one what is in the middle. Of the
    steps the first `warmup_steps` run the whole image, so that there are keys to start from.
    """

    blocks_per_stage: tuple[Blocks, ...] = Field(min_length=2, max_length=MOST_BLOCKS)
    patches: Patches
    warmup_steps: Steps
    schedule: Schedule = "linear"

    @model_validator(mode="after")
    def _folds_in_the_middle(self) -> Self:
        odd = [count for count in self.blocks_per_stage[:-1] if count % 2]
        if self.schedule == "folded" and odd:
            raise ValueError(
                f"a stage of {odd[0]} blocks can't have as many on the way there as on the way "
                "back: in a folded schedule all stages but the last need an even number"
            )
        return self

    def visits(self, stage: int) -> tuple[range, ...]:
        """The blocks of a stage, for each time that a patch comes by."""
        before = sum(self.blocks_per_stage[:stage])
        count = self.blocks_per_stage[stage]
        if self.schedule == "linear":
            return (range(before, before + count),)
        first, end = before // 2, sum(self.blocks_per_stage) - before // 2
        if stage == len(self.blocks_per_stage) - 1:
            return (range(first, end),)
        half = count // 2
        return range(first, first + half), range(end - half, end)

    @property
    def key(self) -> str:
        """Its name among all settings."""
        stages = "+".join(map(str, self.blocks_per_stage))
        return f"patches{self.patches} warmup{self.warmup_steps} stages{stages}"

    def __str__(self) -> str:
        """Such as `4 patches, 1 warm-up step, stages of 6 + 6 + 6 + 6 blocks`."""
        patches = f"{self.patches} patch{'es' if self.patches > 1 else ''}"
        warmup = f"{self.warmup_steps} warm-up step{'s' if self.warmup_steps > 1 else ''}"
        folded = "folded " if self.schedule == "folded" else ""
        blocks = " + ".join(map(str, self.blocks_per_stage))
        return f"{patches}, {warmup}, {folded}stages of {blocks} blocks"


class TaylorSeer(FrozenModel):
    """A step cache: most steps extrapolate the transformer's prediction instead of computing it.

    The first `full_steps` compute, later ones as diffusers' `TaylorSeerCacheConfig` has it: step
    `full_steps` + 1 and each `interval`-th from there. `order` is that of the extrapolation: 0
    repeats the last prediction. Source: arXiv 2503.06923.
    """

    name: Literal["taylorseer"] = "taylorseer"
    interval: Steps
    full_steps: Steps = 3
    order: NonNegativeInt = Field(default=1, le=MOST_ORDER)

    def computes(self, step: int) -> bool:
        """Whether a step, counted from 0, runs the transformer."""
        return step < self.full_steps or (step - self.full_steps - 1) % self.interval == 0

    def computed_steps(self, steps: int) -> int:
        """How many of so many steps run the transformer."""
        full, every = min(steps, self.full_steps), self.interval
        # the step after the full ones is left out unless each one computes
        later = steps - full - 1
        return steps if every == 1 else full + max(0, -(-later // every))

    def __str__(self) -> str:
        """Such as `taylorseer interval 3 after 3, order 1`."""
        return f"{self.name} interval {self.interval} after {self.full_steps}, order {self.order}"


@dataclass(frozen=True)
class Configuration:
    """A mesh on certain ranks, and how each of them runs its share.

    `placement` is the rank of each mesh coordinate, last axis fastest: of a cluster with more
    devices than these any of its ranks. `order` lists the axes from the one whose neighbours are
    farthest apart in rank to the one whose are next to each other; a placement follows from it
    unless unlike devices are seated otherwise, or others than the first ranks are used. A mesh with
    pipefusion stages has a `pipefusion` part. `token_shares` are in what proportion the ranks of a
    sequence share its tokens, one for each coordinate (ring, ulysses), last axis fastest; None for
    equal shares, and heads follow them. With "sharded" weights ranks that run the same blocks have
    a piece of each, which they gather when it runs. With a `step_cache` some steps are
    extrapolated. `ring` says how a ring's keys and values get about: passed on from rank to rank,
    one way or both ways at once, or gathered from all ranks first. When the picture is there, the
    first `vae_parallel` of `vae_ranks` decode it together, a piece each.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)

    mesh: Mesh
    placement: tuple[RankNumber, ...]
    mode: Mode = "eager"
    order: tuple[str, ...] = AXES
    pipefusion: PipeFusion | None = None
    token_shares: tuple[PositiveInt, ...] | None = None
    weights: Weights = "replicated"
    step_cache: TaylorSeer | None = None
    ring: RingVariant = "pass"
    attention: AttentionKernel = "auto"
    vae_parallel: PositiveInt = 1

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(
            (
                self.mesh,
                self.placement,
                self.mode,
                self.order,
                self.pipefusion,
                self.token_shares,
                self.weights,
                self.step_cache,
                self.ring,
                self.attention,
                self.vae_parallel,
            )
        )

    def __getstate__(self) -> dict[str, Any]:
        # texts hash otherwise in another process
        return {name: value for name, value in vars(self).items() if name != "_hash"}

    def __str__(self) -> str:
        """Such as `cfg2 x ulysses4, eager`, with the order of the axes where it isn't the usual
        one, the ranks where they aren't the first, PipeFusion's settings, unequal shares of the
        tokens, weights that are shared out and a step cache.
        """
        placed = "" if self.order == AXES else f", {self.order_text}"
        patched = f", {self.pipefusion}" if self.pipefusion else ""
        shared = f", {self.shares_text}" if self.token_shares else ""
        cached = f", {self.step_cache}" if self.step_cache else ""
        pieces = ", sharded weights" if self.weights == "sharded" else ""
        decoded = f", VAE over {self.vae_parallel} ranks" if self.vae_parallel > 1 else ""
        parts = f"{placed}{self._where}{patched}{shared}{pieces}{cached}{decoded}"
        return f"{self.mesh}, {self.mode}{parts}"

    @property
    def _where(self) -> str:
        ranks = self.ranks
        if ranks == tuple(range(len(ranks))):
            return ""
        return f", rank{'s' if len(ranks) > 1 else ''} {'+'.join(map(str, ranks))}"

    @cached_property
    def key(self) -> str:
        """Its name among all configurations of any model: equal for equal ones alone."""
        degrees = " ".join(
            f"{axis}{degree}" for axis, degree in zip(AXES, self.mesh.degrees, strict=True)
        )
        words = [degrees, ">".join(self.order), self.mode]
        if not self.follows_order:
            words.append(f"ranks{'+'.join(map(str, self.placement))}")
        if self.token_shares:
            words.append(f"tokens{':'.join(map(str, self.token_shares))}")
        if self.weights == "sharded":
            words.append("sharded")
        if self.step_cache:
            words.append(str(self.step_cache))
        if self.pipefusion:
            words.append(self.pipefusion.key)
        if self.ring != "pass":
            words.append(f"ring-{self.ring}")
        if self.attention != "auto":
            words.append(f"attention-{self.attention}")
        if self.vae_parallel > 1:
            words.append(f"vae{self.vae_parallel}")
        return " ".join(words)

    @cached_property
    def follows_order(self) -> bool:
        """Whether the placement is what follows from the order."""
        return self.placement == placement_of(self.mesh, self.order)

    @cached_property
    def ranks(self) -> tuple[int, ...]:
        """The ranks that take part, ascending."""
        return tuple(sorted(self.placement))

    @property
    def vae_ranks(self) -> tuple[int, ...]:
        """Its ranks in the order in which they take part in decoding: from the placement's first
        one on, which keeps the picture, so that those of a host follow each other.
        """
        first = self.ranks.index(self.placement[0])
        return self.ranks[first:] + self.ranks[:first]

    @property
    def weight_group_size(self) -> int:
        """How many ranks share out the weights of a block that they all run."""
        return self.mesh.size // self.mesh.pipefusion if self.weights == "sharded" else 1

    @property
    def can_share_weights(self) -> bool:
        """Whether several ranks run the same blocks, and can gather them: not within graphs."""
        return self.mesh.size > self.mesh.pipefusion and "graph" not in self.mode

    @property
    def shares_text(self) -> str:
        """Such as `tokens 2:1`, by place in the sequence; empty for equal shares."""
        return f"tokens {':'.join(map(str, self.token_shares))}" if self.token_shares else ""

    @property
    def order_text(self) -> str:
        """The axes that are split, far neighbours first, such as `ulysses > cfg`."""
        return " > ".join(axis for axis in self.order if getattr(self.mesh, axis) > 1)

    @property
    def is_exact(self) -> bool:
        """Whether its result is one device's up to rounding."""
        return self.pipefusion is None and self.step_cache is None

    def why_unsound(self) -> str | None:
        """Why its parts don't fit each other, in a sentence; None if they do."""
        return (
            _why_misplaced(self)
            or _why_weights_stay(self)
            or _why_no_step_cache(self)
            or _why_no_vae_ranks(self)
        )


def _why_misplaced(one: Configuration) -> str | None:
    ranks, mesh = len(one.placement), one.mesh
    if ranks != mesh.size or len(set(one.placement)) != ranks:
        return (
            f"the placement must name {mesh.size} ranks for mesh {mesh} once each, it is "
            f"{shortened(list(one.placement))}"
        )
    if sorted(one.order) != sorted(AXES):
        return (
            f"the order must name the axes {', '.join(AXES)} once each, it is "
            f"{shortened(list(one.order))}"
        )
    shares, ranks = one.token_shares, mesh.sequence_parallel
    if shares is not None and len(shares) != ranks:
        return (
            f"the token shares must be {ranks}, one for each rank of a sequence (ring x "
            f"ulysses of mesh {mesh}), they are {shortened(list(shares))}; leave them out "
            "for equal ones"
        )
    stages = len(one.pipefusion.blocks_per_stage) if one.pipefusion else 1
    if stages != mesh.pipefusion:
        return f"the mesh has {mesh.pipefusion} pipefusion stages, the pipefusion part has {stages}"
    return None


def _why_weights_stay(one: Configuration) -> str | None:
    if one.weights == "replicated" or one.can_share_weights:
        return None
    if one.mesh.size == one.mesh.pipefusion:
        return (
            f"weights are shared out over dp, cfg, ring and ulysses, of which mesh {one.mesh} "
            'has none; leave weights at "replicated"'
        )
    return f"weights that are shared out can't be gathered in mode {one.mode}; use eager or compile"


def _why_no_step_cache(one: Configuration) -> str | None:
    if one.step_cache and one.pipefusion:
        return (
            "a step cache can't be combined with pipefusion: stages hold stale keys of the "
            "last step, and a step that is left out renews none; leave one of them out"
        )
    return None


def _why_no_vae_ranks(one: Configuration) -> str | None:
    if one.vae_parallel > one.mesh.size:
        return (
            f"vae_parallel is {one.vae_parallel}, mesh {one.mesh} has {one.mesh.size} "
            f"rank{'s' if one.mesh.size > 1 else ''}; use {one.mesh.size} or less"
        )
    return None
