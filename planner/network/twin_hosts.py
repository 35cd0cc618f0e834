"""Hosts that differ in nothing but their names: what holds between two holds between any."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from ditplan.profiles.cluster import ClusterProfile


def are_alike(cluster: ClusterProfile) -> bool:
    """Whether there are two hosts or more and they differ in nothing but their names: the same
    links between the same nodes of their own (`name/...`) and the same of nobody.

    Then no shortest way leads through a third host: the one that it starts in joins the same nodes.
    """
    seen = {host.name: Counter[tuple[object, ...]]() for host in cluster.hosts}
    if len(seen) < len(cluster.hosts) or any("/" in name for name in seen):
        return False
    for link in cluster.links:
        owners = {node.split("/")[0] for node in (link.a, link.b) if "/" in node} & seen.keys()
        if len(owners) > 1:
            return False
        for owner in owners:
            ends = sorted(renamed(node, f"{owner}/", "/") for node in (link.a, link.b))
            seen[owner][*ends, link.kind, link.latency_s, link.bytes_per_s] += 1
    first, *others = seen.values()
    sizes = {len(host.devices) for host in cluster.hosts}
    return len(seen) > 1 and len(sizes) == 1 and all(links == first for links in others)


def moved(node: str, names: Mapping[str, str]) -> str:
    """The same node of another host."""
    owner, slash, rest = node.partition("/")
    return f"{names.get(owner, owner)}/{rest}" if slash else node


def touches(hop: tuple[str, str], prefix: str) -> bool:
    """Whether a link ends at a node of a host, whose name with a slash is the prefix."""
    return any(node.startswith(prefix) for node in hop)


def renamed(node: str, prefix: str, other: str) -> str:
    """A host's node with another prefix; any other node as it is."""
    return other + node.removeprefix(prefix) if node.startswith(prefix) else node


def pairs_seen(group: Sequence[int], ranks_per_host: int) -> Iterator[tuple[int, int]]:
    """The pairs of a group's ranks, moved to the first host or the first two."""
    on_host = defaultdict[int, list[int]](list)
    for rank in group:
        on_host[rank // ranks_per_host].append(rank % ranks_per_host)
    held = Counter(map(tuple, on_host.values()))
    for here in held:
        yield from itertools.permutations(here, 2)
    for here, there in itertools.product(held, held):
        if here != there or held[here] > 1:
            for a, b in itertools.product(here, there):
                yield a, ranks_per_host + b
