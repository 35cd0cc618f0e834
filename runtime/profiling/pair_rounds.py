"""Which pairs of ranks exchange to tell how fast links are: few, of many hosts.

Each host talks to log2(hosts) others, at the same time as all hosts do, so that rounds grow with
the logarithm of the hosts and exchanges with hosts x log2(hosts), where all pairs would be
hosts x hosts. A host is slow if it is with all its partners: the other one can be to blame for one.
"""

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ditplan.runtime.ranks.gpu_inventory import Ancestor

Pair = tuple[int, int]
About = Literal["inside", "flow", "host"]
"""What a round tells: of links within hosts; of one message between hosts; of all that hosts have
for each other, with every rank sending."""


@dataclass(frozen=True)
class Round:
    """Pairs that exchange at once."""

    about: About
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class HostRanks:
    """A host's ranks: `size` of them from `first` on."""

    name: str
    first: int
    size: int

    @property
    def ranks(self) -> range:
        """Its ranks."""
        return range(self.first, self.first + self.size)


def hosts_in_order(sizes: Mapping[str, int]) -> tuple[HostRanks, ...]:
    """Hosts by name with so many ranks each, which follow their order."""
    ends = itertools.accumulate(sizes.values())
    return tuple(
        HostRanks(name, end - size, size)
        for (name, size), end in zip(sizes.items(), ends, strict=True)
    )


def representatives(
    size: int, ancestors: Mapping[Pair, Ancestor], bridged: Collection[Pair] = ()
) -> tuple[Pair, ...]:
    """Pairs of a host's ranks, one for each kind of way between two of its devices.

    `ancestors` says what pairs share, and `bridged` which NVLink joins, where it joins not all;
    where nothing is known, devices that lie 1, 2, 4 ... apart stand for neighbours, for devices of
    one socket and for those of two.
    """
    if not ancestors and not bridged:
        return tuple((0, 2**power) for power in range((size - 1).bit_length()))
    first: dict[tuple[Ancestor | None, bool], Pair] = {}
    for pair in itertools.combinations(range(size), 2):
        first.setdefault((ancestors.get(pair), pair in bridged), pair)
    return tuple(first.values())


def rounds_of(
    hosts: Sequence[HostRanks], inside: Mapping[str, Sequence[Pair]]
) -> tuple[Round, ...]:
    """All rounds, those first that tell most; `inside` has the pairs of ranks of each host that
    stand for others.
    """
    kinds = max((len(inside[host.name]) for host in hosts), default=0)
    own = [_inside(hosts, inside, place) for place in range(kinds)]
    between = [_between(hosts, 2**power) for power in range((len(hosts) - 1).bit_length())]
    return (
        *own[:1],
        *itertools.chain.from_iterable(between[:1]),
        *own[1:],
        *itertools.chain.from_iterable(between[1:]),
    )


def _inside(hosts: Sequence[HostRanks], inside: Mapping[str, Sequence[Pair]], place: int) -> Round:
    """The pair at a place of each host's list."""
    pairs = (
        (host.first + inside[host.name][place][0], host.first + inside[host.name][place][1])
        for host in hosts
        if place < len(inside[host.name])
    )
    return Round("inside", tuple(pairs))


def _between(hosts: Sequence[HostRanks], apart: int) -> tuple[Round, ...]:
    """Each host with one that stands so far apart: a message of one rank, then of all ranks."""
    partners = [
        (host, hosts[place ^ apart])
        for place, host in enumerate(hosts)
        if place < place ^ apart < len(hosts)
    ]
    flow = Round("flow", tuple((a.first, b.first) for a, b in partners))
    if max(min(a.size, b.size) for a, b in partners) == 1:
        return (flow,)
    everybody = (zip(a.ranks, b.ranks, strict=False) for a, b in partners)
    return flow, Round("host", tuple(itertools.chain.from_iterable(everybody)))
