"""What a rank of a mesh gets of a workload, the busiest if not said otherwise: samples, tokens,
heads.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from ditplan.planner.memo import Memo
from ditplan.profiles.family import family_of
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import Attention, BlockRun, ModelSpec
from ditplan.profiles.splits import head_shares, patch_bounds, split_sizes
from ditplan.profiles.workload import Workload


@dataclass(frozen=True)
class RankShard:
    """The work of the rank that has most of everything, which with equal parts is the first one of
    each axis, or of the rank at a place of its sequence.

    `batch` counts samples in each transformer call. `tokens` are those of one sample that the rank
    holds, by segment; `queries` those that it has in self-attention, after ulysses' exchange;
    `keys` those that it attends to in all. `predicted` are the image tokens that all ranks with a
    share of them predict together. `heads_by` are in what proportion a ulysses group shares heads,
    None for equal parts, and `ulysses_place` is the rank's place in it, None for who has most.
    """

    batch: int
    tokens: dict[str, int]
    queries: dict[str, int]
    keys: dict[str, int]
    ring: int = 1
    ulysses: int = 1
    predicted: int = 0
    heads_by: tuple[int, ...] | None = None
    ulysses_place: int | None = None

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        """Found once: a share is part of many keys."""
        counts = (*self.tokens.values(), *self.queries.values(), *self.keys.values())
        split = (self.ring, self.ulysses, self.ulysses_place)
        return hash((self.batch, *counts, *split, self.predicted))

    @cached_property
    def rows(self) -> int:
        """Tokens of all samples that the rank holds: rows of its matrix products."""
        return self.batch * sum(self.tokens.values())

    def heads(self, attention: Attention) -> int:
        """Heads that the rank computes in an attention."""
        if self.heads_by is None:
            return math.ceil(attention.heads / self.ulysses)
        if attention.heads not in self._heads:
            heads = split_sizes(attention.heads, self.ulysses, self.heads_by)
            own = max(heads) if self.ulysses_place is None else heads[self.ulysses_place]
            self._heads[attention.heads] = own
        return self._heads[attention.heads]

    @cached_property
    def _heads(self) -> dict[int, int]:
        """Its heads by how many there are in all."""
        return {}

    def pairs(self, attention: Attention) -> float:
        """Query-key pairs of all samples, in units of all the heads: half the heads count half.

        None where attention is linear.
        """
        if attention.linear:
            return 0.0
        queries = sum([self.queries.get(segment, 0) for segment in attention.segments])
        keys = sum([self.keys.get(segment, 0) for segment in attention.segments])
        return self.batch * queries * keys * self.heads(attention) / attention.heads


def samples_of(mesh: Mesh, spec: ModelSpec, workload: Workload) -> int:
    """Samples in a call of the busiest rank: pictures times passes, or pictures of one pass.

    Stages of PipeFusion count both calls of a step as one.
    """
    if _calls_apart(mesh, spec):
        return math.ceil(workload.batch / mesh.dp)
    return math.ceil(workload.batch * workload.passes / mesh.batch_parallel)


def calls_of(mesh: Mesh, spec: ModelSpec, workload: Workload) -> int:
    """How often the busiest rank calls the transformer in a step."""
    return math.ceil(workload.passes / mesh.cfg) if _calls_apart(mesh, spec) else 1


def _calls_apart(mesh: Mesh, spec: ModelSpec) -> bool:
    return mesh.pipefusion == 1 and family_of(spec.transformer_class).guidance == "calls"


def share_of(
    mesh: Mesh,
    spec: ModelSpec,
    workload: Workload,
    token_shares: tuple[int, ...] | None = None,
    place: int | None = None,
) -> RankShard:
    """The busiest rank's share, or that of the rank at a place of its sequence.

    Samples split over dp x cfg, tokens over ring x ulysses.
    """
    return RankShards(spec).of(mesh, workload, token_shares, place)


def patch_shares(
    mesh: Mesh,
    spec: ModelSpec,
    workload: Workload,
    patches: int,
    token_shares: tuple[int, ...] | None = None,
    place: int | None = None,
    *,
    repeat_text: bool = False,
) -> tuple[RankShard, ...]:
    """A rank's share of each patch, as `share_of`. Its tokens attend to the whole sequence.

    All of the text goes with the first patch, or with `repeat_text` with each of patches that then
    are of about one size. Patches of one size have the very same share.
    """
    shards = RankShards(spec, repeat_text=repeat_text)
    return shards.of_patches(mesh, workload, patches, token_shares, place)


class RankShards:
    """The shares of one model's workloads, each found once: the same one for all meshes that split
    alike.
    """

    def __init__(self, spec: ModelSpec, *, repeat_text: bool = False) -> None:
        self._spec, self._repeat_text = spec, repeat_text
        self._splits: Memo[tuple[object, ...], tuple[int, ...]] = Memo()
        self._whole: Memo[tuple[object, ...], RankShard] = Memo()
        self._patches: Memo[tuple[object, ...], tuple[RankShard, ...]] = Memo()

    def of(
        self,
        mesh: Mesh,
        workload: Workload,
        token_shares: tuple[int, ...] | None = None,
        place: int | None = None,
    ) -> RankShard:
        """A rank's share of the whole sequence, as `share_of`."""
        samples = samples_of(mesh, self._spec, workload)
        key = (samples, mesh.ring, mesh.ulysses, workload, token_shares, place)
        if key not in self._whole:
            whole = self._tokens(workload)
            self._whole[key] = self._share(mesh, samples, whole, whole, token_shares, place)
        return self._whole[key]

    def of_patches(
        self,
        mesh: Mesh,
        workload: Workload,
        patches: int,
        token_shares: tuple[int, ...] | None = None,
        place: int | None = None,
    ) -> tuple[RankShard, ...]:
        """Its share of each patch, as `patch_shares`."""
        samples = samples_of(mesh, self._spec, workload)
        key = (samples, mesh.ring, mesh.ulysses, patches, workload, token_shares, place)
        if key not in self._patches:
            whole = self._tokens(workload)
            sizes = self._sizes(whole, patches)
            shares = {
                size: self._share(
                    mesh, samples, {"image": size[0], "text": size[1]}, whole, token_shares, place
                )
                for size in set(sizes)
            }
            self._patches[key] = tuple(shares[size] for size in sizes)
        return self._patches[key]

    def _tokens(self, workload: Workload) -> dict[str, int]:
        spec = self._spec
        return {"image": spec.image_tokens(workload), "text": spec.text_tokens(workload)}

    def _sizes(self, whole: Mapping[str, int], patches: int) -> list[tuple[int, int]]:
        """Image and text tokens of each patch."""
        repeats, sizes = self._repeat_text, []
        bounds = patch_bounds(whole["image"], 0 if repeats else whole["text"], patches)
        for patch, (start, end) in enumerate(bounds):
            sizes.append((end - start, whole["text"] if repeats or patch == 0 else 0))
        return sizes

    def _split(self, total: int, parts: int, shares: tuple[int, ...] | None) -> tuple[int, ...]:
        if shares is None:
            return split_sizes(total, parts)
        # as many parts as shares
        key = (total, shares)
        if key not in self._splits:
            self._splits[key] = split_sizes(total, parts, shares)
        return self._splits[key]

    def _share(
        self,
        mesh: Mesh,
        samples: int,
        tokens: dict[str, int],
        keys: dict[str, int],
        token_shares: tuple[int, ...] | None,
        place: int | None,
    ) -> RankShard:
        parts, ulysses = mesh.sequence_parallel, mesh.ulysses
        sizes = {
            segment: self._split(count, parts, token_shares) if count else (0,) * parts
            for segment, count in tokens.items()
        }
        if token_shares is None:
            held = {segment: split[0] for segment, split in sizes.items()}
            queries = {segment: sum(split[:ulysses]) for segment, split in sizes.items()}
        elif place is None:
            held = {segment: max(split) for segment, split in sizes.items()}
            queries = {
                segment: max(sum(split[i : i + ulysses]) for i in range(0, parts, ulysses))
                for segment, split in sizes.items()
            }
        else:
            first = place // ulysses * ulysses
            held = {segment: split[place] for segment, split in sizes.items()}
            queries = {
                segment: sum(split[first : first + ulysses]) for segment, split in sizes.items()
            }
        return RankShard(
            batch=samples,
            tokens=held,
            queries=queries,
            keys=keys,
            ring=mesh.ring,
            ulysses=ulysses,
            predicted=tokens["image"],
            heads_by=head_shares(token_shares, ulysses),
            ulysses_place=None if place is None else place % ulysses,
        )


def point_share(batch: int, image_tokens: int, text_tokens: int, key_tokens: int) -> RankShard:
    """The work of a measured point: its tokens attend to `key_tokens`, shared out over segments
    in proportion.
    """
    tokens = {"image": image_tokens, "text": text_tokens}
    scale = key_tokens / max(1, image_tokens + text_tokens)
    keys = {segment: round(count * scale) for segment, count in tokens.items()}
    return RankShard(batch=batch, tokens=tokens, queries=tokens, keys=keys)


def linear_flops(run: BlockRun, share: RankShard) -> float:
    """FLOPs of one block without self-attention."""
    per_sample = (
        run.image_flops * share.tokens.get("image", 0)
        + run.text_flops * share.tokens.get("text", 0)
        + run.fixed_flops
    )
    return share.batch * per_sample


def attention_flops(run: BlockRun, share: RankShard) -> float:
    """FLOPs of one block's self-attentions: 4 x heads x head_dim for each query-key pair."""
    return sum(4 * a.heads * a.head_dim * share.pairs(a) for a in run.attentions)


def width_of(run: BlockRun) -> int:
    """Hidden size of a block: the widest heads x head_dim of its attentions."""
    return max(attention.heads * attention.head_dim for attention in run.attentions)


def values_per_token(spec: ModelSpec) -> int:
    """Numbers that the transformer puts out for an image token: channels x patch area, 64 where
    unknown.
    """
    patch, channels = spec.config.get("patch_size"), spec.config.get("out_channels")
    channels = channels or spec.config.get("in_channels")
    if isinstance(patch, int) and isinstance(channels, int):
        return patch * patch * channels
    return 64
