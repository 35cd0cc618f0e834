"""What ranks with some rows each of one picture ask each other for."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch.nn import functional

from ditplan.profiles.splits import split_sizes
from ditplan.runtime.collectives import all_gather_uneven
from ditplan.runtime.groups import AxisGroup

Edge = Literal["zeros", "replicate"]
"""What lies beyond the picture's first and last row."""

CHUNK = 1 << 25
"""Numbers in half precision whose statistics are taken at once: in float32 they are 128 MiB."""


@dataclass(frozen=True)
class Halo:
    """How many rows a convolution reads beside a rank's own: of the rank before, of the one after,
    and beyond the picture's last row.
    """

    above: int
    below: int
    beyond: int

    @property
    def reach(self) -> int:
        """How many rows each rank must have, so that only neighbours are asked."""
        return max(self.above, self.below)


class Rows:
    """The rows of this rank in a picture that a group of ranks splits, while it is split.

    Feature maps are (B, C, H, W) or (B, C, F, H, W), H being this rank's rows. Ranks have them in
    the group's order, `sizes` of the smallest feature map each: whatever is computed from them has
    a multiple.
    """

    def __init__(self, group: AxisGroup) -> None:
        self.group = group
        self.sizes: tuple[int, ...] = ()

    @property
    def is_split(self) -> bool:
        """Whether what is computed now is this rank's rows alone."""
        return bool(self.sizes)

    @contextmanager
    def splitting(self, total: int) -> Iterator[slice]:
        """While entered a picture of so many rows is split; gives those of this rank."""
        self.sizes = split_sizes(total, self.group.size)
        start = sum(self.sizes[: self.group.index])
        try:
            yield slice(start, start + self.sizes[self.group.index])
        finally:
            self.sizes = ()

    def sizes_like(self, mine: int) -> tuple[int, ...]:
        """Rows or tokens of each rank where this one has `mine`."""
        return tuple(mine * size // self.sizes[self.group.index] for size in self.sizes)

    def gathered(self, part: torch.Tensor, dim: int = -2) -> torch.Tensor:
        """All ranks' parts of what is split along `dim`."""
        dim %= part.ndim
        return all_gather_uneven(part, dim, self.sizes_like(part.shape[dim]), self.group)

    def summed(self, part: torch.Tensor) -> torch.Tensor:
        """The sum of all ranks' tensors while split, else the tensor."""
        if not self.is_split:
            return part
        total = part.contiguous().clone()
        dist.all_reduce(total, group=self.group.group)
        return total

    def with_halo(
        self, parts: Sequence[torch.Tensor], halo: Halo, edge: Edge
    ) -> tuple[torch.Tensor, ...]:
        """Feature maps (..., H, W) that differ in frames at most, with the rows beside this rank's:
        -> (..., above + H + below, W), at the picture's end (..., above + H + beyond, W).
        """
        above, below = self._neighbours(parts, halo)
        if above is None:
            above = [_beyond(part[..., :1, :], halo.above, edge) for part in parts]
        if below is None:
            below = [_beyond(part[..., -1:, :], halo.beyond, edge) for part in parts]
        return tuple(torch.cat(rows, -2) for rows in zip(above, parts, below, strict=True))

    def _neighbours(
        self, parts: Sequence[torch.Tensor], halo: Halo
    ) -> tuple[list[torch.Tensor] | None, list[torch.Tensor] | None]:
        """The rows before and after this rank's, None beyond the picture."""
        me, last = self.group.index, self.group.size - 1
        frames = [part.shape[2] for part in parts]
        operations: list[dist.P2POp] = []

        def swap(given: list[torch.Tensor], rows: int, peer: int) -> torch.Tensor:
            """Gives a neighbour what it reads of this rank's rows, for `rows` of its own."""
            first = parts[0]
            shape = list(first.shape)
            shape[-2] = rows
            if first.ndim == 5:
                shape[2] = sum(frames)
            arriving = first.new_empty(shape)
            rank, group = self.group.ranks[peer], self.group.group
            if rows:
                operations.append(dist.P2POp(dist.irecv, arriving, rank, group))
            if given[0].shape[-2]:
                whole = given[0] if len(given) == 1 else torch.cat(given, 2)
                operations.append(dist.P2POp(dist.isend, whole.contiguous(), rank, group))
            return arriving

        above = below = None
        if me:
            above = swap([part[..., : halo.below, :] for part in parts], halo.above, me - 1)
        if me < last:
            given = [part[..., part.shape[-2] - halo.above :, :] for part in parts]
            below = swap(given, halo.below, me + 1)
        for work in dist.batch_isend_irecv(operations) if operations else []:
            work.wait()

        def apart(arrived: torch.Tensor | None) -> list[torch.Tensor] | None:
            if arrived is None or len(parts) == 1:
                return None if arrived is None else [arrived]
            return list(arrived.split(frames, 2))

        return apart(above), apart(below)

    def moments(self, part: torch.Tensor, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and biased variance of the whole picture's channels by group, (B, groups) each.

        (B, C, ...) in, float32 or wider out. Ranks have their own means and merge them: Chan,
        Golub and LeVeque, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances
        (1979), equation 2.1.
        """
        own = _merged(torch.stack([_moments(chunk, groups) for chunk in _chunks(part)]))
        ones = (1,) * self.group.size
        count, mean, squares = _merged(all_gather_uneven(own[None], 0, ones, self.group))
        return mean, squares / count


def normalized(
    part: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
    norm: torch.nn.GroupNorm,
) -> torch.Tensor:
    """What a group normalization gives with these statistics, (B, groups) each.

    One elementwise kernel that takes statistics in float32 for numbers in half precision.
    """
    batch, channels = part.shape[:2]
    each = channels // norm.num_groups

    def of_channels(values: torch.Tensor) -> torch.Tensor:
        return values.repeat_interleave(each, 1).flatten()

    def of_samples(values: torch.Tensor | None) -> torch.Tensor | None:
        return None if values is None else values.to(mean.dtype).repeat(batch)

    # cuDNN's own counts numbers in 32 bits
    with torch.backends.cudnn.flags(enabled=False):
        scaled = functional.batch_norm(
            part.reshape(1, batch * channels, *part.shape[2:]),
            of_channels(mean),
            of_channels(variance),
            of_samples(norm.weight),
            of_samples(norm.bias),
            eps=norm.eps,
        )
    return scaled.view(part.shape)


def _beyond(row: torch.Tensor, rows: int, edge: Edge) -> torch.Tensor:
    shape = list(row.shape)
    shape[-2] = rows
    return row.expand(shape) if edge == "replicate" else row.new_zeros(shape)


def _chunks(part: torch.Tensor) -> Sequence[torch.Tensor]:
    """A feature map by pieces whose copy in float32 is no burden; whole where none is made."""
    if part.dtype not in (torch.float16, torch.bfloat16) or part.numel() <= CHUNK:
        return (part,)
    dim = -1 if part.ndim == 3 else -2
    return torch.split(part, max(1, CHUNK * part.shape[dim] // part.numel()), dim)


def _moments(part: torch.Tensor, groups: int) -> torch.Tensor:
    """Count, mean and sum of squared deviations, (3, B, groups)."""
    half = part.dtype in (torch.float16, torch.bfloat16)
    by_group = (part.float() if half else part).unflatten(1, (groups, -1))
    variance, mean = torch.var_mean(by_group, tuple(range(2, by_group.ndim)), correction=0)
    count = torch.full_like(mean, by_group[0, 0].numel())
    return torch.stack([count, mean, variance * count])


def _merged(moments: torch.Tensor) -> torch.Tensor:
    """Those of all parts, (N, 3, B, groups) -> (3, B, groups)."""
    counts, means, squares = moments.unbind(1)
    count = counts.sum(0)
    mean = (counts * means).sum(0) / count
    apart = (counts * (means - mean) ** 2).sum(0)
    return torch.stack([count, mean, squares.sum(0) + apart])
