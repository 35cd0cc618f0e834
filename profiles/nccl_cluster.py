"""A cluster profile from files that nccl-tests wrote elsewhere: what they measured are its tables,
data sheets say what its GPUs are, and links follow from both.
"""

import itertools
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ditplan.profiles.bounds import MOST_RANKS
from ditplan.profiles.cluster import (
    ClusterProfile,
    CollectivePoint,
    CollectiveTable,
    Host,
    Link,
    LinkKind,
    Operation,
)
from ditplan.profiles.data_sheets import DeviceSheet, data_sheets, sheet_named
from ditplan.profiles.errors import Command, InputError, Setting
from ditplan.profiles.link_class import class_by_rate, network_by_rate
from ditplan.profiles.nccl_tests import PROGRAMS, NcclTest, Place, load_nccl_test
from ditplan.profiles.record import shortened, validate

Ranks = tuple[int, ...]


@dataclass(frozen=True)
class _Shape:
    """An operation on groups of `size` ranks, `stride` apart."""

    operation: Operation
    size: int
    stride: int
    groups: int


def cluster_of_tests(paths: Sequence[Path], name: str) -> ClusterProfile:
    """Reads files of nccl-tests of one cluster.

    GPUs are numbered by host, in the order in which the largest run names hosts.

    Raises:
        InputError: a file that can't be read, GPUs without a data sheet, or groups that no axis of
            a mesh can have.
    """
    tests = [load_nccl_test(path) for path in paths]
    of_use = [test for test in tests if test.operation is not None]
    warnings = [
        f"{test.where}: {test.program} is left out: no plan does it"
        for test in tests
        if test.operation is None
    ]
    if not of_use:
        raise InputError(
            f"{tests[0].where}: {shortened(tests[0].program, 40)} is no operation of a plan; give "
            f"files of {', '.join(f'{program}_perf' for program in PROGRAMS)}"
        )
    places = _places_of(of_use)
    if len(places) > MOST_RANKS:
        raise InputError(f"{tests[0].where}: more than {MOST_RANKS} GPUs; give fewer files")
    rank_of = {(place.host, place.device): rank for rank, place in enumerate(places)}
    shaped = [(_shape_of(test, rank_of), test) for test in of_use]
    tables = tuple(_tables(shaped))
    hosts = [
        (host, tuple(group)) for host, group in itertools.groupby(places, key=lambda one: one.host)
    ]
    sheets = [_sheet_of(group, of_use[0].where) for _, group in hosts]
    within, between = _links(hosts, sheets, tables, of_use[0].where)
    warnings += _warnings(sheets, hosts, within)
    versions = sorted({test.nccl for test in of_use if test.nccl})
    return ClusterProfile(
        name=name,
        hosts=tuple(
            Host(name=host, devices=(sheet.device,) * len(group))
            for (host, group), sheet in zip(hosts, sheets, strict=True)
        ),
        links=(*within, *between),
        collectives=tables,
        software={"nccl": ", ".join(versions)} if versions else {},
        warnings=tuple(warnings),
        source="measured by nccl-tests; devices by data sheets",
    )


def _places_of(tests: Sequence[NcclTest]) -> list[Place]:
    """All GPUs by host and number; what a GPU is called must be the same in all files."""
    largest = max(tests, key=lambda test: sum(map(len, test.groups)))
    hosts: dict[str, dict[int, Place]] = {}
    for test in (largest, *tests):
        for place in itertools.chain.from_iterable(test.groups):
            known = hosts.setdefault(place.host, {}).setdefault(place.device, place)
            if known.name != place.name:
                raise InputError(
                    f"{test.where}: GPU {place.device} of {shortened(place.host, 40)} is a "
                    f"{shortened(place.name, 40)}, in another file a {shortened(known.name, 40)}; "
                    "give files of one cluster"
                )
    return [places[number] for places in hosts.values() for number in sorted(places)]


def _shape_of(test: NcclTest, rank_of: dict[tuple[str, int], int]) -> _Shape:
    """The groups of a file as ranks evenly apart.

    Raises:
        InputError: they aren't.
    """
    groups = [tuple(rank_of[place.host, place.device] for place in group) for group in test.groups]
    strides = {b - a for group in groups for a, b in itertools.pairwise(group)}
    stride = strides.pop()
    if strides or stride < 1 or not _lie_side_by_side(groups, stride):
        raise InputError(
            f"{test.where}: its groups {shortened(groups, 80)} aren't ranks evenly apart, as those "
            "of a mesh's axes are; run nccl-tests with `mpirun --map-by slot`"
        )
    assert test.operation is not None
    return _Shape(test.operation, len(groups[0]), stride, len(groups))


def _lie_side_by_side(groups: Sequence[Ranks], stride: int) -> bool:
    """Whether groups share out blocks of ranks: each block has as many as the stride."""
    size = len(groups[0])
    if len(groups) == 1:
        return True
    first = groups[0][0]
    starts = sorted(group[0] - first for group in groups)
    wanted = [
        block * size * stride + offset
        for block in range(-(-len(groups) // stride))
        for offset in range(stride)
    ]
    return starts == wanted[: len(groups)]


def _tables(shaped: Iterable[tuple[_Shape, NcclTest]]) -> Iterator[CollectiveTable]:
    """A table for each shape, of the points of all its files."""
    of_shapes: dict[_Shape, list[NcclTest]] = {}
    for shape, test in shaped:
        of_shapes.setdefault(shape, []).append(test)
    for shape, tests in of_shapes.items():
        by_size: dict[int, list[CollectivePoint]] = {}
        for point in itertools.chain.from_iterable(test.points for test in tests):
            by_size.setdefault(point.bytes, []).append(point)
        yield CollectiveTable(
            operation=shape.operation,
            size=shape.size,
            stride=shape.stride,
            groups=shape.groups,
            points=tuple(
                CollectivePoint(
                    bytes=size,
                    median_s=statistics.median(point.median_s for point in points),
                    p95_s=max(point.p95_s for point in points),
                )
                for size, points in sorted(by_size.items())
            ),
            source="measured: nccl-tests; means of calls, unless each was timed",
        )


def _sheet_of(group: Sequence[Place], where: str) -> DeviceSheet:
    """The data sheet of a host's GPUs.

    Raises:
        InputError: there is none.
    """
    names = sorted({place.name for place in group})
    sheet = sheet_named(names[0])
    if sheet is None or len(names) > 1:
        raise InputError(
            f"{where}: {shortened(', '.join(names), 60)}: there is no data sheet of such a GPU, "
            "and nccl-tests don't say how fast it is; measure it with `",
            Command("profile", (Setting("hosts", "FILE"),)),
            "`",
        )
    return sheet


def _links(
    hosts: Sequence[tuple[str, Sequence[Place]]],
    sheets: Sequence[DeviceSheet],
    tables: Sequence[CollectiveTable],
    where: str,
) -> tuple[list[Link], list[Link]]:
    """Links within hosts, and to the network: as fast as the fastest exchange was."""
    per_host = min(len(group) for _, group in hosts)
    inside = [table for table in tables if table.size * table.stride <= per_host]
    across = [table for table in tables if table.size * table.stride > per_host]
    within: list[Link] = []
    for (host, group), sheet in zip(hosts, sheets, strict=True):
        if len(group) < 2 and len(hosts) < 2:
            continue
        kind, latency_s, rate, source = _within(sheet, len(group), inside)
        within += [
            _link(where, f"{host}/{index}", f"{host}/{kind}", kind, latency_s, rate, source)
            for index in range(len(group))
        ]
    if len(hosts) == 1:
        return within, []
    if not across:
        raise InputError(
            f"{where}: {len(hosts)} hosts, and no file tells how they exchange; give one of a run "
            "over all of them"
        )
    rate = max(_host_rate(table, per_host) for table in across)
    # between GPUs of two hosts lie two links within them as well
    inside_s = max(link.latency_s for link in within)
    latency_s = max(0.0, min(_smallest_s(table) for table in across) / 2 - inside_s)
    kind = network_by_rate(rate)
    nodes = {link.a.rpartition("/")[0]: link.b for link in within}
    source = "measured: nccl-tests, what left a host; its kind is told by its rate"
    return within, [
        _link(where, nodes[host], "network", kind, latency_s, rate, source) for host, _ in hosts
    ]


def _link(
    where: str, a: str, b: str, kind: LinkKind, latency_s: float, rate: float, source: str
) -> Link:
    """A link as it was measured.

    Raises:
        InputError: no link is as fast or as slow.
    """
    fields = {"a": a, "b": b, "kind": kind, "latency_s": latency_s, "bytes_per_s": rate}
    remedy = "measure it again with nccl-tests"
    return validate(Link, fields | {"source": source}, f"{where}: its link", remedy)


def _within(
    sheet: DeviceSheet, gpus: int, tables: Sequence[CollectiveTable]
) -> tuple[LinkKind, float, float, str]:
    """Kind, latency, rate and source of the link of each GPU of a host."""
    if tables:
        rate = max(_bus_rate(table) for table in tables)
        kind = class_by_rate(rate, sheet.pcie_bytes_per_s)
        latency_s = min(_smallest_s(table) for table in tables) / 2
        return kind, latency_s, rate, "measured: nccl-tests, the fastest exchange of a host"
    kind = "nvlink" if gpus <= sheet.nvlink_gpus and sheet.nvlink_bytes_per_s else "pcie"
    raw = sheet.nvlink_bytes_per_s if kind == "nvlink" else sheet.pcie_bytes_per_s
    own = data_sheets().intra[kind]
    return kind, own.latency_s, own.share * (raw or 0), f"not measured: data sheet; {own.source}"


def _bus_rate(table: CollectiveTable) -> float:
    """Bytes/s of a rank's link at the largest size, as nccl-tests' bus bandwidth counts them."""
    point, others = table.points[-1], table.size - 1
    moved = {
        "all_to_all": others / table.size,
        "all_gather": others,
        "all_reduce": 2 * others / table.size,
        "send_recv": 1,
    }[table.operation]
    return moved * point.bytes / point.median_s


def _host_rate(table: CollectiveTable, per_host: int) -> float:
    """Bytes/s that left a host at the largest size, of all groups together.

    Rings cross the border of a host once; of an all_to_all what is for others crosses.
    """
    point = table.points[-1]
    here = max(1, per_host // table.stride)
    groups_here = min(table.groups, max(1, per_host // here))
    if table.operation == "all_to_all":
        moved = here * point.bytes * (table.size - here) / table.size
    else:
        return groups_here * _bus_rate(table)
    return groups_here * moved / point.median_s


def _smallest_s(table: CollectiveTable) -> float:
    return table.points[0].median_s


def _warnings(
    sheets: Sequence[DeviceSheet],
    hosts: Sequence[tuple[str, Sequence[Place]]],
    within: Sequence[Link],
) -> Iterator[str]:
    """Where NVLink should be by the data sheet, and what was measured says otherwise."""
    kinds = {link.a.rpartition("/")[0]: link for link in within}
    for (host, group), sheet in zip(hosts, sheets, strict=True):
        link = kinds.get(host)
        if link is None or link.kind == "nvlink" or not 2 <= len(group) <= sheet.nvlink_gpus:
            continue
        yield (
            f"{host}: GPUs of {sheet.name} can have NVLink, {link.bytes_per_s / 1e9:.3g} GB/s were "
            "measured, as over PCIe; look at `nvidia-smi nvlink -s`, or NCCL_P2P_DISABLE is set"
        )
