"""What collectives ask of links: all messages at once, counted on each direction of each link."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from ditplan.planner.network.groups import AxisGroups
from ditplan.planner.network.tables import Group
from ditplan.profiles.cluster import Operation

Hop = tuple[str, str]
Message = tuple[int, int]
Ends = tuple[int, int, bool]
"""Between which devices a message goes, counted on their hosts, and whether these are two."""

PAIRWISE: tuple[Operation, ...] = ("all_to_all", "peer_all_to_all", "peer_all_gather")
"""Operations that send each pair its part; the others pass along a ring."""


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
class LinkLoads:
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


@dataclass(frozen=True)
class Way:
    """A path between hosts that are all alike: links of the sender's host, of the receiver's (none
    if that is the same one), and those between hosts. Nodes of a host are named as on the first.
    """

    out: tuple[Hop, ...]
    into: tuple[Hop, ...]
    between: tuple[Hop, ...]
    kinds: frozenset[str]
    latency_s: float


class Links(Protocol):
    """What has to be known of a cluster's links."""

    def path(self, source: int, target: int) -> Path | None:
        """The path between two ranks."""

    def rate(self, hop: Hop, flows: int) -> float:
        """Bytes per second of a link that so many messages cross at once."""


class AlikeLinks(Links, Protocol):
    """Those of hosts that are all alike."""

    ranks_per_host: int

    def way(self, ends: Ends) -> Way | None:
        """The path between two devices, on one host or on any two."""


def messages(operation: Operation, group: Group) -> Iterator[Message]:
    """Yields (from, to) of an operation's algorithm.

    all_to_all sends each pair its part, and so do writes into peers' memory; the others pass along
    the ring of the group's order, as NCCL's do.
    """
    if operation in PAIRWISE:
        yield from itertools.permutations(group, 2)
    else:
        yield from zip(group, (*group[1:], group[0]), strict=True)


def sent_share(operation: Operation, size: int) -> float:
    """Bytes of a message per byte that a rank puts in: all_gather passes n - 1 pieces to the next,
    all_reduce 2 (n - 1) / n of the buffer, send_recv one message.
    """
    return {
        "all_to_all": 1 / size,
        "peer_all_to_all": 1 / size,
        "peer_all_gather": 1.0,
        "all_gather": size - 1.0,
        "all_reduce": 2 * (size - 1) / size,
        "send_recv": 1.0,
    }[operation]


def rounds_of(operation: Operation, size: int) -> int:
    """Messages that wait for each other: those between pairs go at once, rings go step by step."""
    return {"all_gather": size - 1, "all_reduce": 2 * (size - 1)}.get(operation, 1)


def traffic_of(links: Links, operation: Operation, groups: Sequence[Group]) -> Traffic | None:
    """Adds up the loads of all groups on each direction of each link; None where no path is
    known.
    """
    sent = (
        (source, target, sent_share(operation, len(group)))
        for group in groups
        for source, target in messages(operation, group)
    )
    loads = _loads_of(links, sent)
    if loads is None:
        return None
    s_per_byte = max(
        share / links.rate(hop, loads.flows[hop]) for hop, share in loads.shares.items()
    )
    rounds = max(rounds_of(operation, len(group)) for group in groups)
    return Traffic(rounds, loads.latency_s, s_per_byte, loads.kind_bytes)


def hops_of(links: Links, lines: Sequence[Group]) -> tuple[Traffic, ...] | None:
    """The traffic of each hop of lines, of which each rank sends to the next and the last one to
    the first, on links that carry all of them; None where no path is known.
    """
    sent = [[(a, b, 1.0) for a, b in messages("send_recv", line)] for line in lines]
    loads = _loads_of(links, itertools.chain(*sent))
    if loads is None:
        return None
    hops = []
    for together in zip(*sent, strict=True):
        own = _loads_of(links, together)
        assert own is not None
        s_per_byte = max(loads.shares[hop] / links.rate(hop, loads.flows[hop]) for hop in own.flows)
        hops.append(Traffic(1, own.latency_s, s_per_byte, own.kind_bytes))
    return tuple(hops)


def fills_hosts_alike(groups: AxisGroups, ranks_per_host: int) -> bool:
    """Whether each host sees of the groups what the first one does.

    So it is with neighbours whose distance is that of hosts, or a part or a multiple of it: moving
    all ranks on by a host then moves groups onto groups.
    """
    if len(groups.runs) != 1 or groups.ranks % ranks_per_host:
        return False
    ((degree, stride),) = groups.runs
    return is_even(degree, stride, ranks_per_host)


def is_even(degree: int, stride: int, ranks_per_host: int) -> bool:
    """Whether groups of so many ranks, so far apart, have as many of them on each host that they
    reach.
    """
    span = degree * stride
    if stride % ranks_per_host == 0 or ranks_per_host % span == 0:
        return True
    return ranks_per_host % stride == 0 and span % ranks_per_host == 0


def alike_traffic_of(links: AlikeLinks, operation: Operation, groups: AxisGroups) -> Traffic | None:
    """The same as `traffic_of`, from what one host sends and receives."""
    loads = _Alike.of(links, operation, groups)
    if loads is None:
        return None
    rounds = rounds_of(operation, groups.size)
    kinds = loads.kind_bytes(loads.out, loads.hosts)
    return Traffic(rounds, loads.latency_s(loads.out), max(loads.s_per_byte.values()), kinds)


def alike_hops_of(links: AlikeLinks, lines: AxisGroups) -> tuple[Traffic, ...] | None:
    """The same as `hops_of`, from what one host sends and receives."""
    loads = _Alike.of(links, "send_recv", lines)
    if loads is None:
        return None
    n, ((degree, stride),) = links.ranks_per_host, lines.runs
    starts = _starts_on_the_first_host(lines, n)
    times = lines.count / len(starts)
    hops = []
    for position in range(degree):
        together: Counter[Ends] = Counter()
        for start in starts:
            source, target = start + position * stride, start + (position + 1) % degree * stride
            together[source % n, target % n, source // n != target // n] += 1
        slowest = max(loads.s_per_byte[hop] for ends in together for hop in loads.hops(ends))
        kinds = loads.kind_bytes(together, times)
        hops.append(Traffic(1, loads.latency_s(together), slowest, kinds))
    return tuple(hops)


@dataclass(frozen=True)
class _Alike:
    """Messages out of one host, counted by their ends, on hosts that all do the same, and what
    their links then take per byte that a rank puts in.
    """

    out: Counter[Ends]
    ways: dict[Ends, Way]
    s_per_byte: dict[Hop, float]
    share: float
    hosts: int

    @classmethod
    def of(cls, links: AlikeLinks, operation: Operation, groups: AxisGroups) -> "_Alike | None":
        """What the groups of an operation do; None where no path is known."""
        n, share = links.ranks_per_host, sent_share(operation, groups.size)
        out, into, ways = Counter[Ends](), Counter[Ends](), {}
        for source, target in _seen_by_the_first_host(operation, groups, n):
            ends = (source % n, target % n, source // n != target // n)
            if source < n:
                out[ends] += 1
            else:
                into[ends] += 1
        for ends in {**out, **into}:
            way = links.way(ends)
            if way is None:
                return None
            ways[ends] = way
        hosts, flows = groups.ranks // n, Counter[Hop]()
        for ends, count in out.items():
            for hop in ways[ends].out:
                flows[hop] += count
            for hop in ways[ends].between:
                flows[hop] += count * hosts
        for ends, count in into.items():
            for hop in ways[ends].into:
                flows[hop] += count
        taken = {hop: share * count / links.rate(hop, count) for hop, count in flows.items()}
        return cls(out, ways, taken, share, hosts)

    def hops(self, ends: Ends) -> Iterable[Hop]:
        """All links on a way."""
        way = self.ways[ends]
        return (*way.out, *way.between, *way.into)

    def latency_s(self, counts: Iterable[Ends]) -> float:
        """The longest latency of some messages."""
        return max(self.ways[ends].latency_s for ends in counts)

    def kind_bytes(self, counts: Counter[Ends], times: float) -> dict[str, float]:
        """Bytes that cross at least one link of each kind when so many messages are sent `times`
        times.
        """
        found: defaultdict[str, float] = defaultdict(float)
        for ends, count in counts.items():
            for kind in sorted(self.ways[ends].kinds):
                found[kind] += count * times * self.share
        return dict(found)


def _seen_by_the_first_host(
    operation: Operation, groups: AxisGroups, ranks_per_host: int
) -> Iterator[Message]:
    """The messages from or to a rank of the first host."""
    ((degree, stride),) = groups.runs
    n = ranks_per_host
    for start in _starts_on_the_first_host(groups, n):
        own = sum(start + member * stride < n for member in range(degree))
        pairs: Iterable[tuple[int, int]]
        if operation in PAIRWISE:
            here, there = range(own), range(own, degree)
            pairs = itertools.chain(
                ((i, j) for i in here for j in range(degree) if i != j),
                itertools.product(there, here),
            )
        else:
            pairs = [(i, (i + 1) % degree) for i in {*range(own), degree - 1}]
        for i, j in pairs:
            yield start + i * stride, start + j * stride


def _starts_on_the_first_host(groups: AxisGroups, ranks_per_host: int) -> list[int]:
    """The first ranks of the groups that begin there; those of other hosts are as far on."""
    ((degree, stride),) = groups.runs
    return [start for start in range(ranks_per_host) if start % (degree * stride) < stride]


def _loads_of(links: Links, sent: Iterable[tuple[int, int, float]]) -> LinkLoads | None:
    """What messages (from, to, share) at once ask of the links; None where no path is known."""
    shares: defaultdict[Hop, float] = defaultdict(float)
    flows: defaultdict[Hop, int] = defaultdict(int)
    kind_bytes: defaultdict[str, float] = defaultdict(float)
    latency_s = 0.0
    for source, target, share in sent:
        path = links.path(source, target)
        if path is None:
            return None
        for hop in path.hops:
            shares[hop] += share
            flows[hop] += 1
        for kind in sorted(path.kinds):
            kind_bytes[kind] += share
        latency_s = max(latency_s, path.latency_s)
    return LinkLoads(dict(shares), dict(flows), dict(kind_bytes), latency_s)
