"""Measures what collectives take on the groups that a mesh can form, an axis's groups at once."""

import datetime
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from ditplan.profiles.cluster import (
    PEER_OPERATIONS,
    ClusterProfile,
    CollectivePoint,
    CollectiveTable,
    Host,
    Operation,
)
from ditplan.profiles.device_kinds import ON_ONE_HOST, with_rates_of_kinds
from ditplan.runtime.groups import AxisGroup, RankContext
from ditplan.runtime.profiling.collective_calls import OPERATION_CALLS, operations_in_call
from ditplan.runtime.profiling.link_sweep import measured_links
from ditplan.runtime.profiling.nccl_programs import tables_of_programs
from ditplan.runtime.profiling.pair_rounds import HostRanks, hosts_in_order
from ditplan.runtime.profiling.timing import synchronize
from ditplan.runtime.ranks.device_numbers import number_of_gpu
from ditplan.runtime.ranks.devices import (
    device_warnings,
    inspect_device,
)
from ditplan.runtime.ranks.environment import environment
from ditplan.runtime.ranks.left_set import environment_warnings
from ditplan.runtime.ranks.pool import RankPool
from ditplan.runtime.ranks.self_test import software_versions
from ditplan.runtime.transport.mailbox import can_write_to_peers

OPERATIONS: tuple[Operation, ...] = ("all_to_all", "all_gather", "send_recv", "all_reduce")
SMALLEST_BYTES = 4 << 10
LARGEST_BYTES = {"cuda": 256 << 20, "cpu": 16 << 20}
# Nothing that a plan does reduces more than a few numbers.
LARGEST_REDUCED_BYTES = 1 << 20
# Of all sizes at once a rank holds what it sends and, shared with its peers, what it gets.
PEER_BYTES = (64 << 10, 64 << 20)
BUDGET_S = {"cuda": 60.0, "cpu": 15.0}
SHAPE_BUDGET_S = 5.0
MOST_USUAL = 10
QUICK = 0.3
# Of so many ranks all shapes are measured; of a part of the ranks no more than so many.
FEW_RANKS, MOST_USED = 16, 32
FEWEST_TIMINGS, MOST_TIMINGS = 3, 30
# Calls in one timing: so many that the synchronization around them doesn't count.
MOST_CALLS, TIMING_S = 10, 2e-3


@dataclass(frozen=True, order=True)
class AxisShape:
    """The groups of one axis of a row-major mesh over the first `used` ranks: `size` ranks each.

    The ranks of a group stand `stride` apart.
    """

    used: int
    size: int
    stride: int

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The ranks of each group."""
        block = self.size * self.stride
        return tuple(
            tuple(range(start + offset, start + offset + block, self.stride))
            for start in range(0, self.used, block)
            for offset in range(self.stride)
        )


def axis_shapes(world_size: int) -> list[AxisShape]:
    """The shapes that axes of legal meshes on some or all of the ranks can have.

    Up to 8 ranks any number of them may be used; beyond, the divisors of all and the powers of two.
    """
    return [
        AxisShape(used, size, stride)
        for used in range(2, world_size + 1)
        if world_size <= 8 or world_size % used == 0 or used & (used - 1) == 0
        for size in range(2, used + 1)
        for stride in range(1, used // size + 1)
        if used % (size * stride) == 0
    ]


def representative_shapes(world_size: int, per_host: int) -> list[AxisShape]:
    """The shapes that are measured: all of up to 16 ranks, and of more those that use all ranks, or
    no more than two hosts have: others are like one of these.

    Beyond 16 ranks their number grows with the square of the logarithm of the ranks.
    """
    most = max(FEW_RANKS, 2 * per_host)
    return [
        shape
        for shape in axis_shapes(world_size)
        if shape.used == world_size or shape.used <= min(most, MOST_USED)
    ]


def profile_cluster(
    pool: RankPool,
    name: str,
    *,
    hosts: Mapping[str, int] | None = None,
    quick: bool = False,
    budget_s: float | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> ClusterProfile:
    """Measures devices, links and collectives of the ranks in a pool.

    Args:
        pool: ranks, one for each device.
        name: what the profile calls the cluster.
        hosts: how many ranks each host has, in their order; this machine has all if left out.
        quick: a third of the time, every other size.
        budget_s: how long links and collectives may take together, about; what it has no room for
            is inferred, and the profile says so. Left out, what is usual, and on slow links up to
            ten times as long.
        say: is told what is being measured.

    Raises:
        RankError: a rank failed; the pool is closed then.
    """
    ranks_of = hosts_in_order(hosts or {"localhost": pool.size})
    say(f"inspecting {pool.size} {pool.device} devices")
    reports = pool.run(inspect_device, timeout_s=120.0)
    for rank, report in enumerate(reports):
        facts = f": {report.facts}" if report.facts else ""
        say(
            f"rank {rank}: {report.device.name}, "
            f"{report.device.half_flops_per_s / 1e12:.3g} TFLOP/s, "
            f"{report.device.memory_bytes_per_s / 1e9:.3g} GB/s{facts}"
        )
    numbers = pool.run(number_here, timeout_s=60.0)
    began = time.perf_counter()
    usual_s = BUDGET_S[pool.device] * (QUICK if quick else 1.0)
    wanted_s, most_s = (usual_s, MOST_USUAL * usual_s) if budget_s is None else (budget_s, budget_s)
    found = measured_links(pool, ranks_of, reports, most_s / 4, say)
    left_s = most_s - (time.perf_counter() - began)
    tables, left_out = _measure_tables(pool, ranks_of, quick, (wanted_s, left_s), say)
    return ClusterProfile(
        name=name,
        hosts=tuple(
            Host(
                name=host.name,
                devices=with_rates_of_kinds(
                    [reports[rank].device for rank in host.ranks], ON_ONE_HOST
                ),
                numbers=_numbers([numbers[rank] for rank in host.ranks]),
            )
            for host in ranks_of
        ),
        links=tuple(found.links),
        collectives=tuple(tables),
        software=pool.run(software_versions, timeout_s=60.0)[0],
        warnings=(
            *environment_warnings(pool.environment),
            *device_warnings(reports),
            *found.warnings,
            *left_out,
        ),
        measured_on=datetime.datetime.now(datetime.UTC).date().isoformat(),
        source="measured",
    )


def number_here(context: RankContext) -> int | None:
    """What the host calls this rank's GPU."""
    return number_of_gpu(context.device, environment())


def _numbers(told: Sequence[int | None]) -> tuple[int, ...] | None:
    """What a host calls its ranks' GPUs; None where these are the first ones, or nobody says."""
    found = [number for number in told if number is not None]
    is_usual = len(found) < len(told) or found == list(range(len(told)))
    return None if is_usual else tuple(found)


def measure_axis(
    context: RankContext,
    shape: AxisShape,
    operation: Operation,
    sizes: Sequence[int],
    budget_s: float,
) -> list[tuple[int, list[float]]]:
    """Times an operation in all groups of an axis at once; a task for every rank.

    Returns, for each size in bytes that the budget allowed, this rank's seconds a call, timing by
    timing; zeros on a rank that is in no group. Every rank makes the same number of timings.
    """
    mine = _group_of(context, shape)
    calls: list[Callable[[], object]] = []
    repeats: list[int] = []
    began, round_s = time.perf_counter(), 0.0
    for size in sizes:
        preparing = time.perf_counter()
        call = _nothing if mine is None else OPERATION_CALLS[operation](context, mine, size)
        # a kernel may have to be compiled first: that is not what the budget is for
        dist.barrier()
        began += time.perf_counter() - preparing
        _time_calls(context, call, 1)
        least = min(_time_calls(context, call, 1) for _ in range(2))
        once, elapsed = _largest(context, least, time.perf_counter() - began)
        calls.append(call)
        repeats.append(max(1, min(MOST_CALLS, int(TIMING_S / once))))
        round_s += repeats[-1] * once
        # The next size takes about twice as long, three times here and then once a round.
        if elapsed + FEWEST_TIMINGS * round_s + 2 * once * (3 + FEWEST_TIMINGS) > budget_s:
            break
    timings: list[list[float]] = [[] for _ in calls]
    # Round after round, so that a disturbance hits one timing of every size, not all of one.
    while len(timings[0]) < FEWEST_TIMINGS or (
        elapsed + round_s < budget_s and len(timings[0]) < MOST_TIMINGS
    ):
        for call, repeat, taken in zip(calls, repeats, timings, strict=True):
            taken.append(_time_calls(context, call, repeat) / operations_in_call(operation))
        (elapsed,) = _largest(context, time.perf_counter() - began)
    return list(zip(sizes, timings, strict=False))


def can_write_within_groups(context: RankContext, shape: AxisShape) -> bool:
    """Whether this rank's group, if it has one, can write to its peers; a task for every rank."""
    mine = _group_of(context, shape)
    return mine is None or can_write_to_peers(mine, context)


def _group_of(context: RankContext, shape: AxisShape) -> AxisGroup | None:
    """This rank's group of an axis. Every rank asks, since making groups is collective."""
    mine = None
    for ranks in shape.groups:
        handle = context.groups.handle(ranks)
        if handle is not None:
            mine = AxisGroup(ranks, handle, ranks.index(context.rank))
    return mine


def _measure_tables(
    pool: RankPool,
    hosts: Sequence[HostRanks],
    quick: bool,
    times_s: tuple[float, float],
    say: Callable[[str], None],
) -> tuple[list[CollectiveTable], list[str]]:
    """The tables that there is time for, and a warning where there isn't for all; `times_s` are
    the seconds in which it is to be done, and those after which no other table is begun.
    """
    wanted_s, most_s = times_s
    shapes = representative_shapes(pool.size, min(host.size for host in hosts))
    if not shapes:
        return [], []
    began = time.perf_counter()
    share_s = min(wanted_s / len(shapes), SHAPE_BUDGET_S)
    factor = 4 if quick else 2
    tables = _tables_of_programs(pool, say) if len(hosts) == 1 else []
    known = {(table.operation, table.size, table.stride, table.groups) for table in tables}
    for number, shape in enumerate(shapes, start=1):
        if number > 1 and time.perf_counter() - began > most_s:
            left = len(shapes) - number + 1
            return tables, [
                f"{left} of {len(shapes)} kinds of group weren't measured, for want of time: what "
                "they take is inferred from links and from groups like them; give it more time"
            ]
        groups = f"{len(shape.groups)} group{'s' if len(shape.groups) > 1 else ''}"
        say(
            f"collectives {number}/{len(shapes)}: {groups} of {shape.size} ranks, "
            f"stride {shape.stride}"
        )
        # decided here for all ranks: one that thought otherwise would be waited for forever
        by_writes = all(pool.run(can_write_within_groups, shape, timeout_s=60.0))
        operations = (*OPERATIONS, *PEER_OPERATIONS.values()) if by_writes else OPERATIONS
        for operation in operations:
            if (operation, shape.size, shape.stride, len(shape.groups)) in known:
                continue
            sizes = sizes_of(pool.device, operation, factor)
            by_rank = pool.run(
                measure_axis,
                shape,
                operation,
                sizes,
                share_s / len(operations),
                timeout_s=60.0 + 20 * share_s / len(operations),
            )
            tables.append(_table(shape, operation, by_rank))
    return tables, []


def _tables_of_programs(pool: RankPool, say: Callable[[str], None]) -> list[CollectiveTable]:
    """What nccl-tests measure, where its programs are on PATH."""
    if pool.device == "cpu":
        return []

    sizes = {operation: sizes_of(pool.device, operation, 2) for operation in OPERATIONS}
    return list(tables_of_programs(pool.size, sizes.__getitem__, pool.environment, say))


def sizes_of(device: str, operation: Operation, factor: int) -> list[int]:
    """The sizes at which an operation is timed, each `factor` times the one before."""
    smallest, largest = SMALLEST_BYTES, LARGEST_BYTES[device]
    if operation == "all_reduce":
        largest = LARGEST_REDUCED_BYTES
    elif operation in PEER_OPERATIONS.values():
        smallest, largest = PEER_BYTES
    sizes = [smallest]
    while sizes[-1] * factor <= largest:
        sizes.append(sizes[-1] * factor)
    return sizes


def _table(
    shape: AxisShape, operation: Operation, by_rank: Sequence[list[tuple[int, list[float]]]]
) -> CollectiveTable:
    points = []
    for same_size in zip(*by_rank, strict=True):
        # The slowest rank counts: the others wait for it.
        slowest = [
            max(timing) for timing in zip(*(seconds for _, seconds in same_size), strict=True)
        ]
        p95 = statistics.quantiles(slowest, n=20, method="inclusive")[-1]
        median = statistics.median(slowest)
        points.append(CollectivePoint(bytes=same_size[0][0], median_s=median, p95_s=p95))
    return CollectiveTable(
        operation=operation,
        size=shape.size,
        stride=shape.stride,
        groups=len(shape.groups),
        points=tuple(points),
        source="measured",
    )


def _nothing() -> None:
    """What a rank does that is in no group."""


def _largest(context: RankContext, *values: float) -> list[float]:
    """The largest of each value over all ranks, so that all of them decide alike."""
    numbers = torch.tensor(values, dtype=torch.float64, device=context.device)
    dist.all_reduce(numbers, dist.ReduceOp.MAX)
    return [max(number, 1e-9) for number in numbers.tolist()]


def _time_calls(context: RankContext, call: Callable[[], object], calls: int) -> float:
    """Seconds a call, of some calls that all ranks begin together."""
    dist.barrier()
    synchronize(context.device)
    start = time.perf_counter()
    for _ in range(calls):
        call()
    synchronize(context.device)
    return (time.perf_counter() - start) / calls
