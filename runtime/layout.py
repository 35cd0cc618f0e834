"""Who holds which tokens: segments, each split over all ranks, whole or in patches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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
    def ulysses_size(self) -> int:
        """How many ranks share the heads."""
        return self.ulysses.size if self.ulysses else 1


@dataclass
class Patches:
    """The patches that a segment is cut into; the other segments go with the first of them.

    `bounds` are set when the sequence's length is known. `current` is the patch that is computed,
    None for the whole sequence.
    """

    segment: str
    bounds: tuple[tuple[int, int], ...] = ()
    current: int | None = None

    def range_of(self, segment: str, length: int, patch: int | None) -> tuple[int, int]:
        """Start and end of a patch's tokens of a segment that is `length` long."""
        if patch is None:
            return 0, length
        if segment == self.segment:
            return self.bounds[patch]
        return (0, length) if patch == 0 else (0, 0)


@dataclass
class Layout:
    """How long each segment of the current call is, as every rank sees from its inputs.

    `lengths` are those of what is computed now, all of it or a patch; `whole` of all.
    """

    groups: SequenceGroups
    patches: Patches | None = None
    lengths: dict[str, int] = field(default_factory=dict)
    whole: dict[str, int] = field(default_factory=dict)

    def share(self, tensor: torch.Tensor, segment: str, dim: int) -> torch.Tensor:
        """This rank's share of a whole tensor; notes the segment's length.

        Raises:
            InputError: fewer tokens than ranks.
        """
        ranks, length = self.groups.size, tensor.shape[dim]
        start, end = 0, length
        if self.patches is None or self.patches.current is None:
            self.whole[segment] = length
        elif segment == self.patches.segment:
            start, end = self.patches.bounds[self.patches.current]
        here = end - start
        if here < ranks and (here or self.patches is None):
            raise InputError(
                f"{here} {segment} tokens can't be split over {ranks} ranks; use a plan with "
                f"ring x ulysses of at most {here}"
            )
        self.lengths[segment] = here
        first, last = _bounds(here, ranks, self.groups.index)
        # with the usual strides even where a dim is 1 long, as compiled blocks put out: they are
        # compiled anew for others
        share = tensor.narrow(dim, start + first, last - first)
        return share.clone(memory_format=torch.contiguous_format)

    def sizes(self, segments: Sequence[str]) -> list[int]:
        """How many tokens of these segments together each rank holds."""
        ranks = self.groups.size
        return [
            sum(last - first for first, last in self._ranges(segments, self.lengths, rank))
            for rank in range(ranks)
        ]

    def _ranges(
        self, segments: Sequence[str], lengths: Mapping[str, int], rank: int
    ) -> list[tuple[int, int]]:
        return [_bounds(lengths[segment], self.groups.size, rank) for segment in segments]

    def tokens(self, segments: Sequence[str], patch: int | None, ranks: Sequence[int]) -> list[int]:
        """Which tokens of the whole sequence some ranks hold of a patch, rank after rank."""
        found: list[int] = []
        for rank in ranks:
            before = 0
            for segment in segments:
                length = self.whole[segment]
                start, end = (
                    self.patches.range_of(segment, length, patch) if self.patches else (0, length)
                )
                first, last = _bounds(end - start, self.groups.size, rank)
                found += range(before + start + first, before + start + last)
                before += length
        return found


def _bounds(length: int, ranks: int, rank: int) -> tuple[int, int]:
    """A rank's share of a segment, which may be empty for all of them."""
    return split_bounds(length, ranks, rank) if length else (0, 0)
