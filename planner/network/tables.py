"""Measured collectives: durations between a table's points, and the groups it was measured on."""

import itertools
import math
from collections.abc import Sequence

from ditplan.profiles.cluster import CollectivePoint, CollectiveTable

Group = tuple[int, ...]


def interpolate_s(points: Sequence[CollectivePoint], bytes_per_rank: float) -> float:
    """Seconds at a size from measured points: straight lines in log-log between them.

    Below the first point the latency stays, beyond the last one the bandwidth.
    """
    ordered = sorted(points, key=lambda point: point.bytes)
    first, last = ordered[0], ordered[-1]
    if bytes_per_rank <= first.bytes:
        return first.median_s
    if bytes_per_rank >= last.bytes:
        return last.median_s * bytes_per_rank / last.bytes
    low, high = next(
        pair
        for pair in itertools.pairwise(ordered)
        if pair[0].bytes <= bytes_per_rank <= pair[1].bytes
    )
    if bytes_per_rank == high.bytes or high.bytes == low.bytes:
        return high.median_s
    share = math.log(bytes_per_rank / low.bytes) / math.log(high.bytes / low.bytes)
    return low.median_s * math.exp(share * math.log(high.median_s / low.median_s))


def stride_of(group: Group) -> int | None:
    """The distance of consecutive ranks of a group, if it is one and positive."""
    strides = {after - before for before, after in itertools.pairwise(group)}
    stride = strides.pop()
    return stride if not strides and stride > 0 else None


def common_stride(groups: Sequence[Group]) -> int | None:
    """The stride of all the groups, if they have the same one."""
    strides = {stride_of(group) for group in groups}
    return strides.pop() if len(strides) == 1 else None


def table_groups(table: CollectiveTable, ranks: int) -> tuple[Group, ...] | None:
    """The groups that a table was measured on: the first ones of its size and stride.

    None if they don't fit.
    """
    span = table.size * table.stride
    starts = (
        block * span + offset for block in range(ranks // span) for offset in range(table.stride)
    )
    found = tuple(
        tuple(start + i * table.stride for i in range(table.size))
        for start in itertools.islice(starts, table.groups)
    )
    return found if len(found) == table.groups else None


def mean_stride(group: Group) -> float:
    """The mean distance of consecutive ranks of a group, at least 1."""
    return max(1.0, abs(group[-1] - group[0]) / (len(group) - 1))
