"""Which of a cluster's ranks a plan that needs fewer may use: subsets that links can tell apart.

Ranks that are near each other are a domain, such as those of a PCIe switch, a socket, a host. Of
alike domains only how many ranks each gives matters, not which.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ditplan.planner.memo import Memo
from ditplan.planner.network.topology import Topology
from ditplan.profiles.splits import split_sizes

Ranks = tuple[int, ...]
"""Of a subset, those of a domain side by side."""

Nearness = tuple[float, float, int]
"""Of two ranks, small for near ones: latency, seconds a byte on the slowest link, and how many
links to other hosts they don't share."""

MOST_SUBSETS = 16
"""Where there are more of a size only even ones are tried: each domain that gives ranks gives as
many as the others of its kind."""

MOST_TAKEN = 16
"""Of a host's devices, or of so many, subsets are sought; larger meshes fill hosts."""

MOST_RANKS = 64
"""Of more ranks on hosts that aren't alike only the first ones are used."""


@dataclass(frozen=True)
class Domain:
    """Ranks that are as near to each other as they are listed: in parts, or all alike. `kind` is
    the same for domains that nothing tells apart.
    """

    ranks: Ranks
    parts: tuple["Domain", ...]
    kind: object


class Subsets:
    """The subsets of a topology's ranks, each size found once."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self._found: Memo[int, tuple[Ranks, ...]] = Memo()
        self._whole: Domain | None = None

    def of_size(self, size: int) -> tuple[Ranks, ...]:
        """The subsets of so many ranks that differ from the first ranks and from each other; none
        where all are alike, devices differ, or links aren't known.
        """
        if size not in self._found:
            self._found[size] = tuple(self._differing(size))
        return self._found[size]

    def _differing(self, size: int) -> Iterator[Ranks]:
        topology = self.topology
        most = min(topology.ranks - 1, max(MOST_TAKEN, topology.ranks_per_host))
        if not 1 < size <= most or topology.has_different_devices:
            return
        if self._whole is None:
            self._whole = _cluster_domain(topology)
        if not self._whole.parts:
            return
        ways = [*itertools.islice(_ways(self._whole, size), MOST_SUBSETS + 1)]
        if len(ways) > MOST_SUBSETS:
            ways = [*itertools.islice(_even_ways(self._whole, size), MOST_SUBSETS)]
        yield from (ranks for ranks in ways if ranks != tuple(range(size)))


def _cluster_domain(topology: Topology) -> Domain:
    """All ranks, host by host."""
    firsts = list(itertools.accumulate((len(h.devices) for h in topology.cluster.hosts), initial=0))
    hosts = [tuple(range(*pair)) for pair in itertools.pairwise(firsts)]
    if len(hosts) == 1:
        return _domain_of(topology, hosts[0], hosts[0], None)
    if topology.hosts_are_alike:
        first = _domain_of(topology, hosts[0], (*hosts[0], *hosts[1]), hosts[1][0])
        parts = tuple(_moved(first, host[0]) for host in hosts)
    elif topology.ranks > MOST_RANKS:
        parts = ()
    else:
        everybody = tuple(range(topology.ranks))
        parts = tuple(
            _domain_of(topology, host, everybody, hosts[0][0] if number else hosts[1][0])
            for number, host in enumerate(hosts)
        )
    return Domain(tuple(itertools.chain(*hosts)), _by_kind(parts), None)


def _domain_of(topology: Topology, ranks: Ranks, others: Ranks, outside: int | None) -> Domain:
    """Ranks of a host in their parts; `outside` is a rank of another host."""
    near = {pair: _nearness(topology, *pair, outside) for pair in itertools.permutations(ranks, 2)}
    rows = {
        rank: tuple(sorted(_way(topology, rank, other) for other in others if other != rank))
        for rank in ranks
    }
    kind = (len(ranks), tuple(sorted(rows.values())))
    farthest = max(near.values(), default=None)
    if len(set(near.values())) <= 1:
        is_uniform = len(set(rows.values())) == 1
        alone = (Domain((rank,), (), row) for rank, row in rows.items())
        return Domain(ranks, () if is_uniform else _by_kind(tuple(alone)), kind)
    groups: list[list[int]] = []
    for rank in ranks:
        joined = [group for group in groups if any(near[rank, one] != farthest for one in group)]
        groups = [group for group in groups if group not in joined]
        groups.append([*itertools.chain(*joined), rank])
    if len(groups) == 1:
        # near ones of near ones are far from each other: which ranks are taken matters
        return Domain(ranks, tuple(Domain((rank,), (), rank) for rank in ranks), kind)
    parts = _by_kind([_domain_of(topology, tuple(group), others, outside) for group in groups])
    return Domain(tuple(itertools.chain(*(part.ranks for part in parts))), parts, kind)


def _nearness(topology: Topology, rank: int, other: int, outside: int | None) -> Nearness:
    path = topology.links.path(rank, other)
    if path is None:
        return (float("inf"), float("inf"), 0)
    apart = 0
    if outside is not None:
        ways = [topology.links.path(one, outside) for one in (rank, other)]
        hops = [{*way.hops} if way else set() for way in ways]
        apart = len(hops[0] - hops[1])
    slowest = max(1 / topology.links.rate(hop, 1) for hop in path.hops)
    return (float(f"{path.latency_s:.6g}"), float(f"{slowest:.6g}"), apart)


def _way(topology: Topology, rank: int, other: int) -> tuple[float, ...]:
    """What there is to tell of the links from one rank to another: latency, and rates in order."""
    path = topology.links.path(rank, other)
    return (path.latency_s, *(topology.links.rate(hop, 1) for hop in path.hops)) if path else ()


def _by_kind(parts: Sequence[Domain]) -> tuple[Domain, ...]:
    """Those of one kind side by side."""
    kinds = list(dict.fromkeys(part.kind for part in parts))
    return tuple(sorted(parts, key=lambda part: kinds.index(part.kind)))


def _moved(domain: Domain, by: int) -> Domain:
    """The same domain of another host."""
    ranks = tuple(rank + by for rank in domain.ranks)
    return Domain(ranks, tuple(_moved(part, by) for part in domain.parts), domain.kind)


def _ways(domain: Domain, count: int) -> Iterator[Ranks]:
    """All ways to take so many ranks of a domain that differ in more than which of alike parts
    gives more.
    """
    if not domain.parts:
        yield domain.ranks[:count]
    else:
        yield from _shared_out(domain.parts, count, (count, 0))


def _shared_out(parts: Sequence[Domain], count: int, before: tuple[int, int]) -> Iterator[Ranks]:
    """Ways to take so many ranks of parts: of the first one no more than were taken `before` of one
    like it, and of as many no way of taking them that stands before that one's.
    """
    if not parts:
        yield ()
        return
    first, rest = parts[0], parts[1:]
    is_alike = bool(rest) and rest[0].kind == first.kind
    for own in range(min(len(first.ranks), count, before[0]), -1, -1):
        left = sum(
            min(len(part.ranks), own) if part.kind == first.kind else len(part.ranks)
            for part in rest
        )
        if own + left < count:
            return
        for number, here in enumerate(_ways(first, own)):
            if own == before[0] and number < before[1]:
                continue
            limit = (own, number) if is_alike else (count, 0)
            for there in _shared_out(rest, count - own, limit):
                yield here + there


def _even_ways(domain: Domain, count: int) -> Iterator[Ranks]:
    """Ways to take so many ranks of a domain in which all parts that give some give as many as they
    can alike, and in the same way.
    """
    if not domain.parts:
        yield domain.ranks[:count]
        return
    groups = [
        tuple(group) for _, group in itertools.groupby(domain.parts, key=lambda part: part.kind)
    ]
    for used in range(1, min(count, len(domain.parts)) + 1):
        shares = split_sizes(count, used)
        for chosen in _picked(groups, used):
            if all(share <= len(part.ranks) for share, part in zip(shares, chosen, strict=True)):
                yield from _alike_in(chosen, shares)


def _picked(groups: Sequence[tuple[Domain, ...]], used: int) -> Iterator[tuple[Domain, ...]]:
    """So many parts, the first ones of each kind."""
    if not groups:
        if not used:
            yield ()
        return
    for own in range(min(used, len(groups[0])), -1, -1):
        for others in _picked(groups[1:], used - own):
            yield groups[0][:own] + others


def _alike_in(parts: Sequence[Domain], shares: Sequence[int]) -> Iterator[Ranks]:
    """Parts of one kind that give equally many do so in the same way."""
    keys = [(part.kind, share) for part, share in zip(parts, shares, strict=True)]
    ways = [list(_even_ways(part, share)) for part, share in zip(parts, shares, strict=True)]
    distinct = {key: len(own) for key, own in zip(keys, ways, strict=True)}
    for numbers in itertools.product(*map(range, distinct.values())):
        number_of = dict(zip(distinct, numbers, strict=True))
        yield tuple(
            itertools.chain(*(own[number_of[key]] for key, own in zip(keys, ways, strict=True)))
        )
