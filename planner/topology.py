"""How long collectives take on a cluster: measured tables first, then links shared by all who
use them at once.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import networkx as nx

from ditplan.planner.constants import CostConstants
from ditplan.planner.tables import (
    Group,
    Groups,
    common_stride,
    interpolate_s,
    mean_stride,
    table_groups,
)
from ditplan.profiles.cluster import (
    ClusterProfile,
    CollectiveTable,
    Link,
    Operation,
)
from ditplan.profiles.errors import InputError
from ditplan.profiles.model import Source

Hop = tuple[str, str]

CROSSINGS = ("memory", "socket")
"""Kinds of link that lose bandwidth when many messages cross them at once."""


@dataclass(frozen=True)
class Estimate:
    """A duration in seconds and where it comes from."""

    seconds: float
    source: Source


@dataclass(frozen=True)
class Traffic:
    """What an operation of all its groups asks of the links; everything grows with the bytes a rank
    puts in.

    `rounds` dependent messages of at most `latency_s` each, `s_per_byte` on the busiest link.
    """

    rounds: int
    latency_s: float
    s_per_byte: float
    kind_bytes: dict[str, float]


@dataclass(frozen=True)
class Loads:
    """What all messages of an operation put on each direction of each link."""

    shares: dict[Hop, float]
    flows: dict[Hop, int]
    kind_bytes: dict[str, float]
    latency_s: float


@dataclass(frozen=True)
class Path:
    """The links between two ranks in order, their kinds, and the sum of their latencies."""

    hops: tuple[Hop, ...]
    kinds: frozenset[str]
    latency_s: float


def messages(operation: Operation, group: Group) -> Iterator[tuple[int, int, float]]:
    """Yields (from, to, bytes sent per byte that a rank puts in) of an operation's algorithm.

    all_to_all sends each pair its part, and so do writes into peers' memory; the others pass along
    the ring of the group's order, as NCCL's do: all_gather n - 1 pieces, all_reduce 2 (n - 1) / n
    of the buffer, send_recv one message to the next.
    """
    n = len(group)
    per_pair = {"all_to_all": 1 / n, "peer_all_to_all": 1 / n, "peer_all_gather": 1.0}
    if operation in per_pair:
        for source, target in itertools.permutations(group, 2):
            yield source, target, per_pair[operation]
        return
    per_hop = {"all_gather": n - 1.0, "all_reduce": 2 * (n - 1) / n, "send_recv": 1.0}[operation]
    for i, source in enumerate(group):
        yield source, group[(i + 1) % n], per_hop


def rounds_of(operation: Operation, size: int) -> int:
    """Messages that wait for each other: those between pairs go at once, rings go step by step."""
    return {"all_gather": size - 1, "all_reduce": 2 * (size - 1)}.get(operation, 1)


class Topology:
    """A cluster's ranks and links, with remembered paths and traffic."""

    def __init__(self, cluster: ClusterProfile, constants: CostConstants | None = None) -> None:
        """Builds the graph of links; parallel links between two nodes add up."""
        self.cluster = cluster
        self._constants = constants or CostConstants()
        self._nodes = cluster.device_nodes
        self.device_names = tuple(device.name for device in cluster.devices)
        self._graph = _graph_of(cluster.links)
        self._paths: dict[tuple[int, int], Path | None] = {}
        self._traffic: dict[tuple[Operation, Groups], Traffic | None] = {}
        self._hops: dict[Groups, tuple[Traffic, ...] | None] = {}
        self._tables: dict[tuple[Operation, Groups], CollectiveTable | None] = {}
        self._kinds: dict[Group, str | None] = {}

    @property
    def ranks(self) -> int:
        """How many devices there are."""
        return len(self._nodes)

    @property
    def ranks_per_host(self) -> int:
        """Devices of the smallest host."""
        return min(len(host.devices) for host in self.cluster.hosts)

    def collective_s(
        self, operation: Operation, bytes_per_rank: float, groups: Sequence[Group]
    ) -> Estimate:
        """Duration of an operation run by all the groups of ranks at once; groups of one rank take
        no time.

        `bytes_per_rank` is what one rank puts in, as in `CollectivePoint`.

        Raises:
            InputError: nothing was measured that comes near, and no links join the ranks.
        """
        wanted = tuple(tuple(group) for group in groups if len(group) > 1)
        if not wanted or bytes_per_rank <= 0:
            return Estimate(0.0, "measured")
        if table := self._matching_table(operation, wanted):
            return Estimate(interpolate_s(table.points, bytes_per_rank), "measured")
        traffic = self._traffic_of(operation, wanted)
        if found := self._nearest_table(operation, wanted, traffic):
            return self._scaled(found, bytes_per_rank, traffic)
        if traffic is None:
            raise InputError(
                f"cluster {self.cluster.name}: no {operation} of {len(wanted[0])} ranks was "
                f"measured and no links join the ranks {list(wanted[0])}; measure it again with "
                "`ditplan profile --hosts FILE` or give its links"
            )
        return Estimate(self._computed_s(traffic, bytes_per_rank), "computed")

    def is_measured(self, operation: Operation, groups: Sequence[Group]) -> bool:
        """Whether there is a table of an operation on just such groups: as many, of that size and
        stride.
        """
        wanted = tuple(tuple(group) for group in groups if len(group) > 1)
        return bool(wanted) and self._matching_table(operation, wanted) is not None

    def link_bytes(
        self, operation: Operation, bytes_per_rank: float, groups: Sequence[Group]
    ) -> dict[str, float]:
        """Bytes of all messages that cross at least one link of each kind.

        Empty where no links are known.
        """
        wanted = tuple(tuple(group) for group in groups if len(group) > 1)
        traffic = self._traffic_of(operation, wanted) if wanted else None
        if traffic is None:
            return {}
        return {kind: share * bytes_per_rank for kind, share in traffic.kind_bytes.items()}

    def hop_s(self, bytes_per_rank: float, lines: Sequence[Group], position: int) -> Estimate:
        """Duration of one hop of lines of ranks while each rank sends to the next, the last one to
        the first: all hops are under way at once, but those over faster links arrive earlier.

        Raises:
            InputError: as `collective_s`.
        """
        wanted = tuple(tuple(line) for line in lines)
        slowest = self.collective_s("send_recv", bytes_per_rank, wanted)
        hops, traffic = self._hops_of(wanted), self._traffic_of("send_recv", wanted)
        if hops is None or traffic is None or bytes_per_rank <= 0:
            return slowest
        whole_s = self._computed_s(traffic, bytes_per_rank)
        share = self._computed_s(hops[position], bytes_per_rank) / whole_s
        if share == 1 or slowest.source == "computed":
            return Estimate(slowest.seconds * share, slowest.source)
        return Estimate(slowest.seconds * share, "interpolated")

    def hop_bytes(
        self, bytes_per_rank: float, lines: Sequence[Group], position: int
    ) -> dict[str, float]:
        """Bytes that cross at least one link of each kind in one hop of all lines."""
        hops = self._hops_of(tuple(tuple(line) for line in lines))
        if hops is None:
            return {}
        kinds = hops[position].kind_bytes
        return {kind: share * bytes_per_rank for kind, share in kinds.items()}

    def slowest_kind(self, groups: Sequence[Group]) -> str | None:
        """The kind of the slowest link between members of the first of the groups, if links are
        known.
        """
        if not groups:
            return None
        group = tuple(groups[0])
        if group not in self._kinds:
            paths = (self._path(a, b) for a, b in itertools.permutations(group, 2))
            edges = [self._graph.edges[hop] for path in paths if path for hop in path.hops]
            slowest = min(edges, key=lambda edge: float(edge["bytes_per_s"]), default=None)
            self._kinds[group] = None if slowest is None else str(slowest["kind"])
        return self._kinds[group]

    def links_between(self, source: int, target: int) -> list[tuple[Hop, str]]:
        """The links from one rank to another in order with their kinds; none if unknown."""
        path = self._path(source, target)
        return [(hop, self._graph.edges[hop]["kind"]) for hop in path.hops] if path else []

    def signature(self, groups: Sequence[Group]) -> tuple[float, ...]:
        """What tells groups apart on this topology: durations of two operations at a small and
        a large size.
        """
        operations: tuple[Operation, ...] = ("all_to_all", "send_recv")
        return tuple(
            float(f"{self.collective_s(operation, size, groups).seconds:.6g}")
            for operation in operations
            for size in (2**16, 2**26)
        )

    def _matching_table(self, operation: Operation, groups: Groups) -> CollectiveTable | None:
        key = (operation, groups)
        if key not in self._tables:
            self._tables[key] = self._find_table(operation, groups)
        return self._tables[key]

    def _find_table(self, operation: Operation, groups: Groups) -> CollectiveTable | None:
        stride = common_stride(groups)
        shape = (operation, len(groups[0]), stride, len(groups))
        for table in self.cluster.collectives:
            if (table.operation, table.size, table.stride, table.groups) == shape:
                return table
        return None

    def _nearest_table(
        self, operation: Operation, groups: Groups, traffic: Traffic | None
    ) -> tuple[CollectiveTable, Traffic | None] | None:
        """The table nearest in stride and groups at once, of the same size and over the same
        kinds of link.
        """
        alike = (operation, len(groups[0]))
        tables = [one for one in self.cluster.collectives if (one.operation, one.size) == alike]
        if not tables:
            return None
        stride = common_stride(groups) or mean_stride(groups[0])
        candidates = []
        for table in tables:
            theirs = self._table_traffic(table)
            if traffic and theirs and theirs.kind_bytes.keys() != traffic.kind_bytes.keys():
                continue
            distance = abs(math.log(table.stride / stride)) + abs(
                math.log(table.groups / len(groups))
            )
            candidates.append((distance, table.stride, table.groups, table, theirs))
        if not candidates:
            return None
        return min(candidates, key=lambda found: found[:3])[3:]

    def _table_traffic(self, table: CollectiveTable) -> Traffic | None:
        groups = table_groups(table, self.ranks)
        return self._traffic_of(table.operation, groups) if groups else None

    def _scaled(
        self,
        found: tuple[CollectiveTable, Traffic | None],
        bytes_per_rank: float,
        traffic: Traffic | None,
    ) -> Estimate:
        """A table's duration, corrected by what the links say of the difference between its
        groups and ours.
        """
        table, theirs = found
        seconds = interpolate_s(table.points, bytes_per_rank)
        if traffic and theirs:
            ours_s = self._computed_s(traffic, bytes_per_rank)
            seconds *= ours_s / self._computed_s(theirs, bytes_per_rank)
        return Estimate(seconds, "interpolated")

    def _computed_s(self, traffic: Traffic, bytes_per_rank: float) -> float:
        latency_s = self._constants.collective_launch_s + traffic.rounds * traffic.latency_s
        return latency_s + traffic.s_per_byte * bytes_per_rank

    def _traffic_of(self, operation: Operation, groups: Groups) -> Traffic | None:
        key = (operation, groups)
        if key not in self._traffic:
            self._traffic[key] = self._count_traffic(operation, groups)
        return self._traffic[key]

    def _count_traffic(self, operation: Operation, groups: Groups) -> Traffic | None:
        """Adds up the loads of all groups on each direction of each link.

        None where no path is known.
        """
        sent = [message for group in groups for message in messages(operation, group)]
        loads = self._loads_of(sent)
        if loads is None:
            return None
        s_per_byte = max(
            share / self._rate(hop, loads.flows[hop]) for hop, share in loads.shares.items()
        )
        rounds = max(rounds_of(operation, len(group)) for group in groups)
        return Traffic(rounds, loads.latency_s, s_per_byte, loads.kind_bytes)

    def _hops_of(self, lines: Groups) -> tuple[Traffic, ...] | None:
        """The traffic of each hop of the lines, on links that carry all of them; None where no path
        is known.
        """
        if lines not in self._hops:
            self._hops[lines] = self._count_hops(lines)
        return self._hops[lines]

    def _count_hops(self, lines: Groups) -> tuple[Traffic, ...] | None:
        sent = [list(messages("send_recv", line)) for line in lines]
        loads = self._loads_of(list(itertools.chain(*sent)))
        if loads is None:
            return None
        hops = []
        for together in zip(*sent, strict=True):
            own = self._loads_of(together)
            assert own is not None
            s_per_byte = max(
                loads.shares[hop] / self._rate(hop, loads.flows[hop]) for hop in own.shares
            )
            hops.append(Traffic(1, own.latency_s, s_per_byte, own.kind_bytes))
        return tuple(hops)

    def _loads_of(self, sent: Sequence[tuple[int, int, float]]) -> Loads | None:
        """What messages (from, to, share) at once ask of the links; None where no path is known."""
        shares: defaultdict[Hop, float] = defaultdict(float)
        flows: defaultdict[Hop, int] = defaultdict(int)
        kind_bytes: defaultdict[str, float] = defaultdict(float)
        latency_s = 0.0
        for source, target, share in sent:
            path = self._path(source, target)
            if path is None:
                return None
            for hop in path.hops:
                shares[hop] += share
                flows[hop] += 1
            for kind in path.kinds:
                kind_bytes[kind] += share
            latency_s = max(latency_s, path.latency_s)
        return Loads(dict(shares), dict(flows), dict(kind_bytes), latency_s)

    def _rate(self, hop: Hop, flows: int) -> float:
        """Bytes per second of a link that so many messages cross at once."""
        edge = self._graph.edges[hop]
        rate = float(edge["bytes_per_s"])
        if edge["kind"] in CROSSINGS:
            rate *= flows**-self._constants.crossing_exponent
        return rate

    def _path(self, source: int, target: int) -> Path | None:
        key = (source, target)
        if key not in self._paths:
            self._paths[key] = self._find_path(self._nodes[source], self._nodes[target])
        return self._paths[key]

    def _find_path(self, source: str, target: str) -> Path | None:
        if source not in self._graph or target not in self._graph:
            return None
        try:
            nodes = nx.shortest_path(self._graph, source, target, weight="weight")
        except nx.NetworkXNoPath:
            return None
        hops = tuple(itertools.pairwise(nodes))
        edges = [self._graph.edges[hop] for hop in hops]
        kinds = frozenset(str(edge["kind"]) for edge in edges)
        return Path(hops, kinds, sum(float(edge["latency_s"]) for edge in edges))


def _graph_of(links: Sequence[Link]) -> nx.Graph[str]:
    """The links as a graph whose weights are latencies, fewer hops first among equal ones.

    Bandwidth has no say in the route, so a faster link never draws traffic onto a shared slow one.
    """
    graph: nx.Graph[str] = nx.Graph()
    for link in links:
        latency_s, rate = link.latency_s, link.bytes_per_s
        if graph.has_edge(link.a, link.b):
            known = graph.edges[link.a, link.b]
            latency_s, rate = min(latency_s, known["latency_s"]), rate + known["bytes_per_s"]
        weight = latency_s + 1e-9
        graph.add_edge(
            link.a, link.b, kind=link.kind, latency_s=latency_s, bytes_per_s=rate, weight=weight
        )
    return graph
