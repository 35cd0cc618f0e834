"""How long collectives take on a cluster: measured tables first, then links shared by all who
use them at once.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeGuard

from ditplan.planner.memo import Memo
from ditplan.planner.network.groups import (
    AxisGroups,
    Groups,
    count_of,
    first_of,
    listed,
    stride_in,
    wanted,
)
from ditplan.planner.network.link_graph import LinkGraph
from ditplan.planner.network.tables import Group, interpolate_s, mean_stride, table_groups
from ditplan.planner.network.traffic import (
    Hop,
    Traffic,
    alike_hops_of,
    alike_traffic_of,
    fills_hosts_alike,
    hops_of,
    traffic_of,
)
from ditplan.profiles.cluster import ClusterProfile, CollectiveTable, LinkKind, Operation
from ditplan.profiles.cost_constants import CostConstants
from ditplan.profiles.device_kinds import with_kinds_named
from ditplan.profiles.errors import Command, InputError, Setting
from ditplan.profiles.model import Source
from ditplan.profiles.peer_memory import can_push


class Estimate(NamedTuple):
    """A duration in seconds and where it comes from; a tuple, as very many are made."""

    seconds: float
    source: Source


class Topology:
    """A cluster's ranks, links and measured collectives, with remembered traffic."""

    def __init__(self, cluster: ClusterProfile, constants: CostConstants | None = None) -> None:
        """Builds the graph of links.

        Devices go by the names of their kinds: those of one name that differ in speed have others.
        """
        self.cluster = cluster = with_kinds_named(cluster)
        self._constants = constants or CostConstants()
        self._nodes = cluster.device_nodes
        self.device_names = tuple(device.name for device in cluster.devices)
        self.has_different_devices = len(set(self.device_names)) > 1
        self.links = LinkGraph(cluster, self._constants.crossing_exponent)
        self.ranks_per_host = self.links.ranks_per_host
        """Devices of the smallest host."""
        self.hosts_are_alike = self.links.hosts_are_alike
        """Whether exchanging hosts for each other changes nothing but names."""
        self._traffic: Memo[tuple[Operation, Groups], Traffic | None] = Memo()
        self._hops: Memo[Groups, tuple[Traffic, ...] | None] = Memo()
        self._tables: Memo[tuple[Operation, Groups], CollectiveTable | None] = Memo()
        self._joined: Memo[Group, tuple[int, LinkKind | None]] = Memo()
        self._hops_s: Memo[tuple[float, Groups], tuple[Estimate, ...]] = Memo()
        self._signatures: Memo[tuple[tuple[Operation, ...], Groups], tuple[float, ...]] = Memo()

    @property
    def ranks(self) -> int:
        """How many devices there are."""
        return len(self._nodes)

    def collective_s(
        self, operation: Operation, bytes_per_rank: float, groups: Sequence[Group] | AxisGroups
    ) -> Estimate:
        """Duration of an operation run by all the groups of ranks at once; groups of one rank take
        no time.

        `bytes_per_rank` is what one rank puts in, as in `CollectivePoint`.

        Raises:
            InputError: nothing was measured that comes near, and no links join the ranks.
        """
        talking = wanted(groups)
        if not talking or bytes_per_rank <= 0:
            return Estimate(0.0, "measured")
        if table := self._matching_table(operation, talking):
            return Estimate(interpolate_s(table.points, bytes_per_rank), "measured")
        traffic = self._traffic_of(operation, talking)
        if found := self._nearest_table(operation, talking, traffic):
            return self._scaled(found, bytes_per_rank, traffic)
        if traffic is None:
            first = first_of(talking)
            raise InputError(
                f"cluster {self.cluster.name}: no {operation} of {len(first)} ranks was "
                f"measured and no links join the ranks {list(first)}; measure it again with `",
                Command("profile", (Setting("hosts", "FILE"),)),
                "` or give its links",
            )
        return Estimate(self._computed_s(traffic, bytes_per_rank), "computed")

    def is_measured(self, operation: Operation, groups: Sequence[Group] | AxisGroups) -> bool:
        """Whether there is a table of an operation on just such groups: as many, of that size and
        stride.
        """
        if not self.cluster.collectives:
            return False
        talking = wanted(groups)
        return bool(talking) and self._matching_table(operation, talking) is not None

    def link_bytes(
        self, operation: Operation, bytes_per_rank: float, groups: Sequence[Group] | AxisGroups
    ) -> dict[str, float]:
        """Bytes of all messages that cross at least one link of each kind.

        Empty where no links are known.
        """
        talking = wanted(groups)
        traffic = self._traffic_of(operation, talking) if talking else None
        if traffic is None:
            return {}
        return {kind: share * bytes_per_rank for kind, share in traffic.kind_bytes.items()}

    def hops_s(
        self, bytes_per_rank: float, lines: Sequence[Group] | AxisGroups
    ) -> tuple[Estimate, ...]:
        """Durations of the hops of lines of ranks while each rank sends to the next, the last one
        to the first: all are under way at once, but those over faster links arrive earlier.

        Raises:
            InputError: as `collective_s`.
        """
        talking = wanted(lines)
        key = (bytes_per_rank, talking)
        if key not in self._hops_s:
            self._hops_s[key] = tuple(self._find_hops_s(bytes_per_rank, talking))
        return self._hops_s[key]

    def _find_hops_s(self, bytes_per_rank: float, lines: Groups) -> Iterator[Estimate]:
        slowest = self.collective_s("send_recv", bytes_per_rank, lines)
        hops, traffic = self._hops_of(lines), self._traffic_of("send_recv", lines)
        if hops is None or traffic is None or bytes_per_rank <= 0:
            yield from [slowest] * len(first_of(lines))
            return
        whole_s = self._computed_s(traffic, bytes_per_rank)
        for hop in hops:
            share = self._computed_s(hop, bytes_per_rank) / whole_s
            is_so = share == 1 or slowest.source == "computed"
            source: Source = slowest.source if is_so else "interpolated"
            yield Estimate(slowest.seconds * share, source)

    def hop_bytes(
        self, bytes_per_rank: float, lines: Sequence[Group] | AxisGroups, position: int
    ) -> dict[str, float]:
        """Bytes that cross at least one link of each kind in one hop of all lines."""
        hops = self._hops_of(wanted(lines))
        if hops is None:
            return {}
        kinds = hops[position].kind_bytes
        return {kind: share * bytes_per_rank for kind, share in kinds.items()}

    def can_push(self, groups: Sequence[Group] | AxisGroups) -> bool:
        """Whether GPUs of the first of the groups write into each other's memory."""
        talking = wanted(groups)
        return bool(talking) and can_push(*self._joined_by(first_of(talking)))

    def slowest_kind(self, groups: Sequence[Group] | AxisGroups) -> LinkKind | None:
        """The kind of the slowest link between members of the first of the groups, if links are
        known.
        """
        talking = wanted(groups)
        return self._joined_by(first_of(talking))[1] if talking else None

    def _joined_by(self, group: Group) -> tuple[int, LinkKind | None]:
        """On how many hosts a group is, and the kind of the slowest link between its members."""
        if group not in self._joined:
            hops = dict.fromkeys(self.links.hops_within(group))
            slowest = min(hops, key=self.links.bytes_per_s, default=None)
            hosts = {self._nodes[rank].rpartition("/")[0] for rank in group}
            self._joined[group] = (len(hosts), self.links.kind(slowest) if slowest else None)
        return self._joined[group]

    def kinds_within(self, groups: Sequence[Group] | AxisGroups) -> frozenset[str]:
        """The kinds of all links between members of the first of the groups."""
        talking = wanted(groups)
        hops = self.links.hops_within(first_of(talking)) if talking else ()
        return frozenset(map(self.links.kind, hops))

    def links_between(self, source: int, target: int) -> list[tuple[Hop, str]]:
        """The links from one rank to another in order with their kinds; none if unknown."""
        path = self.links.path(source, target)
        return [(hop, self.links.kind(hop)) for hop in path.hops] if path else []

    def signature(
        self,
        groups: Sequence[Group] | AxisGroups,
        operations: tuple[Operation, ...] = ("all_to_all", "send_recv"),
    ) -> tuple[float, ...]:
        """What tells groups apart on this topology: durations of operations, between all pairs and
        from each rank to the next, at a small and a large size.
        """
        talking = wanted(groups)
        key = (operations, talking)
        if key not in self._signatures:
            self._signatures[key] = tuple(
                float(f"{self.collective_s(operation, size, talking).seconds:.6g}")
                for operation in operations
                for size in (2**16, 2**26)
            )
        return self._signatures[key]

    def _matching_table(self, operation: Operation, groups: Groups) -> CollectiveTable | None:
        if not self.cluster.collectives:
            return None
        key = (operation, groups)
        if key not in self._tables:
            self._tables[key] = self._find_table(operation, groups)
        return self._tables[key]

    def _find_table(self, operation: Operation, groups: Groups) -> CollectiveTable | None:
        shape = (operation, len(first_of(groups)), stride_in(groups), count_of(groups))
        for table in self.cluster.collectives:
            is_alike = (table.operation, table.size, table.stride, table.groups) == shape
            if is_alike and self._is_as_measured(table, groups):
                return table
        return None

    def _is_as_measured(self, table: CollectiveTable, groups: Groups) -> bool:
        """Whether groups of a table's shape ask of the links what its own do: others than the first
        ranks needn't.
        """
        theirs, ours = self._table_traffic(table), self._traffic_of(table.operation, groups)
        return isinstance(groups, AxisGroups) or theirs is None or ours is None or theirs == ours

    def _nearest_table(
        self, operation: Operation, groups: Groups, traffic: Traffic | None
    ) -> tuple[CollectiveTable, Traffic | None] | None:
        """The table nearest in stride and groups at once, of the same size and over the same
        kinds of link.
        """
        if not self.cluster.collectives:
            return None
        alike = (operation, len(first_of(groups)))
        tables = [one for one in self.cluster.collectives if (one.operation, one.size) == alike]
        if not tables:
            return None
        stride = stride_in(groups) or mean_stride(first_of(groups))
        candidates = []
        for table in tables:
            theirs = self._table_traffic(table)
            if traffic and theirs and theirs.kind_bytes.keys() != traffic.kind_bytes.keys():
                continue
            distance = abs(math.log(table.stride / stride)) + abs(
                math.log(table.groups / count_of(groups))
            )
            candidates.append((distance, table.stride, table.groups, table, theirs))
        if not candidates:
            return None
        return min(candidates, key=lambda found: found[:3])[3:]

    def _table_traffic(self, table: CollectiveTable) -> Traffic | None:
        groups = table_groups(table, self.ranks)
        return self._traffic_of(table.operation, wanted(groups)) if groups else None

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
        if self._can_count_a_host(groups):
            return alike_traffic_of(self.links, operation, groups)
        return traffic_of(self.links, operation, listed(groups))

    def _hops_of(self, lines: Groups) -> tuple[Traffic, ...] | None:
        """The traffic of each hop of the lines, on links that carry all of them; None where no path
        is known.
        """
        if lines not in self._hops:
            self._hops[lines] = (
                alike_hops_of(self.links, lines)
                if self._can_count_a_host(lines)
                else hops_of(self.links, listed(lines))
            )
        return self._hops[lines]

    def _can_count_a_host(self, groups: Groups) -> TypeGuard[AxisGroups]:
        """Whether all hosts do what the first one does."""
        if not self.hosts_are_alike or not isinstance(groups, AxisGroups):
            return False
        return fills_hosts_alike(groups, self.ranks_per_host)
