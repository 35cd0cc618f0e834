"""A cluster's links as a graph: the paths between its ranks, and how fast each link is."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import networkx as nx

from ditplan.planner.memo import Memo
from ditplan.planner.network.tables import Group
from ditplan.planner.network.traffic import Ends, Hop, Path, Way
from ditplan.planner.network.twin_hosts import are_alike, moved, pairs_seen, renamed, touches
from ditplan.profiles.cluster import ClusterProfile, Link, LinkKind

CROSSINGS = ("memory", "socket")
"""Kinds of link that lose bandwidth when many messages cross them at once."""


class LinkGraph:
    """The links between a cluster's ranks, with remembered paths."""

    def __init__(self, cluster: ClusterProfile, crossing_exponent: float) -> None:
        """Builds the graph; parallel links between two nodes add up.

        A link of `CROSSINGS` that n messages cross at once has n to the minus `crossing_exponent`
        of its bandwidth.
        """
        self._crossing_exponent = crossing_exponent
        self._nodes = cluster.device_nodes
        self._graph = _graph_of(cluster.links)
        self._hosts = tuple(host.name for host in cluster.hosts)
        self.ranks_per_host = min(len(host.devices) for host in cluster.hosts)
        """Devices of the smallest host."""
        self.hosts_are_alike = are_alike(cluster)
        """Whether exchanging hosts for each other changes nothing but names."""
        self._paths: Memo[tuple[int, int], Path | None] = Memo()
        self._ways: Memo[Ends, Way | None] = Memo()

    def kind(self, hop: Hop) -> LinkKind:
        """What kind of link joins two nodes."""
        kind: LinkKind = self._graph.edges[hop]["kind"]
        return kind

    def bytes_per_s(self, hop: Hop) -> float:
        """Bytes per second each way of a link that one message crosses."""
        return float(self._graph.edges[hop]["bytes_per_s"])

    def hops_within(self, group: Group) -> Iterator[Hop]:
        """The links on all ways between members of a group; of hosts that are alike those of one or
        two of them.
        """
        pairs: Iterable[tuple[int, int]] = itertools.permutations(group, 2)
        if self.hosts_are_alike:
            pairs = pairs_seen(group, self.ranks_per_host)
        for pair in pairs:
            if path := self.path(*pair):
                yield from path.hops

    def rate(self, hop: Hop, flows: int) -> float:
        """Bytes per second of a link that so many messages cross at once."""
        edge = self._graph.edges[hop]
        rate = float(edge["bytes_per_s"])
        if edge["kind"] in CROSSINGS:
            rate *= flows**-self._crossing_exponent
        return rate

    def path(self, source: int, target: int) -> Path | None:
        """The path between two ranks, of least latency; None where no links join them."""
        key = (source, target)
        if key not in self._paths:
            n = self.ranks_per_host
            if self.hosts_are_alike and max(source, target) >= 2 * n:
                self._paths[key] = self._moved_path(source, target)
            else:
                self._paths[key] = self._find_path(self._nodes[source], self._nodes[target])
        return self._paths[key]

    def _moved_path(self, source: int, target: int) -> Path | None:
        """The path between the same devices of the first two hosts, moved to theirs."""
        n = self.ranks_per_host
        host, other = source // n, target // n
        known = self.path(source % n, target % n + (n if host != other else 0))
        if known is None:
            return None
        names = {self._hosts[0]: self._hosts[host], self._hosts[1]: self._hosts[other]}
        hops = tuple((moved(a, names), moved(b, names)) for a, b in known.hops)
        return Path(hops, known.kinds, known.latency_s)

    def way(self, ends: Ends) -> Way | None:
        """The path between two devices of one host, or of any two hosts that are alike."""
        if ends not in self._ways:
            self._ways[ends] = self._find_way(ends)
        return self._ways[ends]

    def _find_way(self, ends: Ends) -> Way | None:
        source, target, leaves = ends
        path = self.path(source, target + (self.ranks_per_host if leaves else 0))
        if path is None:
            return None
        own, others = f"{self._hosts[0]}/", f"{self._hosts[-1 if not leaves else 1]}/"
        out = tuple(hop for hop in path.hops if touches(hop, own))
        into = tuple(hop for hop in path.hops if leaves and touches(hop, others))
        between = tuple(hop for hop in path.hops if hop not in out and hop not in into)
        as_first = tuple((renamed(a, others, own), renamed(b, others, own)) for a, b in into)
        return Way(out, as_first, between, path.kinds, path.latency_s)

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
