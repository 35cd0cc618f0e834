"""Who holds which tokens: segments, each split over all ranks, whole or in patches."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from ditplan.profiles.errors import InputError
from ditplan.profiles.splits import split_bounds
from ditplan.runtime.groups import AxisGroup


@dataclass(frozen=True)
class SequenceGroups:
    """The groups that split a sequence: all its ranks, and its two axes (None for degree 1)."""

    all: AxisGroup | None
    ring: AxisGroup | None
    ulysses: AxisGroup | None

    @property
    def size(self) -> int:
        """How many ranks share a sequence."""
        return self.all.size if self.all else 1

    @property
    def index(self) -> int:
        """This rank's place among them: ring first."""
        return self.all.index if self.all else 0

    @property
    def arrivals(self) -> tuple[int, ...]:
        """The places of all ranks in the order in which gathered tokens stand: ring member after
        ring member, each one's by the numbering of its own ulysses process group.
        """
        if self.all is None:
            return (0,)
        ranks, degree = self.all.ranks, self.ulysses_size
        starts = range(0, self.size, degree)
        return tuple(
            place
            for start in starts
            for place in sorted(range(start, start + degree), key=ranks.__getitem__)
        )

    @property
    def ulysses_size(self) -> int:
        """How many ranks share the heads."""
        return self.ulysses.size if self.ulysses else 1


FILLER = -1
"""In place of a token's number: one that is computed and counts for nothing."""


@dataclass
class Patches:
    """The patches that a segment is cut into; the other segments go with the first of them.

    With `has_filler` the others have a token of them on each rank, which counts for nothing.
    `bounds` are set when the sequence's length is known.
    """

    segment: str
    has_filler: bool = False
    bounds: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Visiting:
    """What of a step is computed: a patch, or the whole sequence (None), in which of the step's
    calls of the transformer, and in which of its blocks.
    """

    patch: int | None = None
    call: int = 0
    layer: int = 0


@dataclass
class Layout:
    """How long each whole segment of the current call is, as every rank sees from its inputs.

    `masks` are (B, tokens) of whole segments, false for tokens that nobody attends to. `units` are
    how many tokens of a segment stay together, 1 where it has none. In proportion to `shares` the
    ranks get tokens, None for equal parts. `visiting` is what is computed, see `during`.
    """

    groups: SequenceGroups
    shares: tuple[int, ...] | None = None
    patches: Patches | None = None
    lengths: dict[str, int] = field(default_factory=dict)
    masks: dict[str, torch.Tensor] = field(default_factory=dict)
    units: dict[str, int] = field(default_factory=dict)
    visiting: Visiting = Visiting()
    _orders: dict[tuple[Any, ...], torch.Tensor] = field(default_factory=dict)
    _ordered_masks: dict[tuple[Any, ...], torch.Tensor] = field(default_factory=dict)

    @property
    def patch(self) -> int | None:
        """The patch that is computed; None for the whole sequence."""
        return self.visiting.patch

    @contextmanager
    def during(self, visiting: Visiting) -> Iterator[None]:
        """Has all that a model's own code calls meanwhile, and can't hand it to, see `visiting`."""
        before, self.visiting = self.visiting, visiting
        try:
            yield
        finally:
            self.visiting = before

    def share(self, tensor: torch.Tensor, segment: str, dim: int) -> torch.Tensor:
        """This rank's share of a whole tensor, or of a patch of it; notes the segment's length.

        Raises:
            InputError: fewer tokens than ranks.
        """
        self.lengths[segment] = tensor.shape[dim]
        start, end = self.range_of(segment, self.patch)
        unit, ranks = self.units.get(segment, 1), self.groups.size
        here = (end - start) // unit
        if here < ranks and (here or self.patches is None):
            what = "tokens" if unit == 1 else f"rows of {unit} tokens"
            raise InputError(
                f"{here} {segment} {what} can't be split over {ranks} ranks; use a plan with "
                f"ring x ulysses of at most {here}"
            )
        first, last = self.held(segment)
        # with the usual strides even where a dim is 1 long, as compiled blocks put out: they are
        # compiled anew for others
        share = tensor.narrow(dim, first, last - first)
        return share.clone(memory_format=torch.contiguous_format)

    def held(self, segment: str) -> tuple[int, int]:
        """Start and end in the segment of this rank's tokens of what is computed."""
        start, end = self.range_of(segment, self.patch)
        first, last = self._bounds(segment, end - start, self.groups.index)
        return start + first, start + last

    def sizes(self, segments: Sequence[str]) -> list[int]:
        """How many tokens of these segments together each rank holds of what is computed."""
        ranges = [(segment, *self.range_of(segment, self.patch)) for segment in segments]
        sizes = []
        for rank in range(self.groups.size):
            shares = (self._bounds(segment, end - start, rank) for segment, start, end in ranges)
            sizes.append(sum(last - first for first, last in shares))
        return sizes

    def tokens(self, segments: Sequence[str], patch: int | None, ranks: Sequence[int]) -> list[int]:
        """Which tokens of the whole sequence some ranks hold of a patch, rank after rank; `FILLER`
        for those that don't count.
        """
        found: list[int] = []
        for rank in ranks:
            before = 0
            for segment in segments:
                start, end = self.range_of(segment, patch)
                first, last = self._bounds(segment, end - start, rank)
                if self._fills(segment, patch):
                    found += [FILLER] * (last - first)
                else:
                    found += range(before + start + first, before + start + last)
                before += self.lengths[segment]
        return found

    def note_masks(self, masks: dict[str, torch.Tensor]) -> None:
        """Takes the masks of the call that begins."""
        self.masks = masks
        self._ordered_masks.clear()

    def mask(self, segments: Sequence[str], ranks: Sequence[int]) -> torch.Tensor | None:
        """(B, 1, 1, tokens): which of some ranks' tokens count, rank after rank; None for all.

        While a patch is computed they come patch after patch, as they are kept.
        """
        known = [self.masks[segment] for segment in segments if segment in self.masks]
        if not known:
            return None
        batch, device = known[0].shape[0], known[0].device
        patches: Sequence[int | None] = (None,)
        if self.patches and self.patch is not None:
            patches = range(len(self.patches.bounds))
        key = (tuple(segments), tuple(ranks), patches, tuple(self.lengths.items()), device)
        if key in self._ordered_masks:
            return self._ordered_masks[key]
        if key not in self._orders:
            # kept: while a graph is captured nothing can be brought to the device
            order = [one for patch in patches for one in self.tokens(segments, patch, ranks)]
            counting = [one for one in order if one != FILLER]
            self._orders[key] = torch.tensor(counting, device=device)
        whole = torch.cat(
            [
                self.masks[segment]
                if segment in self.masks
                else known[0].new_ones(batch, self.lengths[segment])
                for segment in segments
            ],
            1,
        )
        ordered = whole.index_select(1, self._orders[key])[:, None, None]
        self._ordered_masks[key] = ordered
        return ordered

    def masked_ranges(self, segments: Sequence[str], ranks: Sequence[int]) -> list[tuple[int, int]]:
        """Start and end of each run of masked segments in `mask` of the whole sequence."""
        found: list[tuple[int, int]] = []
        at = 0
        for rank in ranks:
            for segment in segments:
                first, last = self._bounds(segment, self.lengths[segment], rank)
                end = at + last - first
                if segment in self.masks and at < end:
                    joins = found and found[-1][1] == at
                    found.append((found.pop()[0] if joins else at, end))
                at = end
        return found

    def range_of(self, segment: str, patch: int | None) -> tuple[int, int]:
        """Start and end of a patch's tokens in a segment."""
        if patch is None or self.patches is None:
            return 0, self.lengths[segment]
        if segment == self.patches.segment:
            return self.patches.bounds[patch]
        if self._fills(segment, patch):
            return 0, self.groups.size
        return (0, self.lengths[segment]) if patch == 0 else (0, 0)

    def _fills(self, segment: str, patch: int | None) -> bool:
        """Whether a patch has nothing but filler of a segment."""
        patches = self.patches
        return bool(patch and patches and patches.has_filler and segment != patches.segment)

    def _bounds(self, segment: str, length: int, rank: int) -> tuple[int, int]:
        """A rank's share of a segment, in whole units, which may be empty for all ranks."""
        if not length:
            return 0, 0
        unit = self.units.get(segment, 1)
        first, last = split_bounds(length // unit, self.groups.size, rank, self.shares)
        return first * unit, last * unit
