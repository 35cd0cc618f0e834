"""The links of a cluster: what NVML, sysfs and NCCL say is a claim, what was measured decides."""

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ditplan.profiles.cluster import DeviceKind, Link, LinkKind
from ditplan.profiles.link_class import class_by_rate, network_by_rate
from ditplan.runtime.profiling.pair_rounds import HostRanks, Pair
from ditplan.runtime.profiling.pair_sweep import PairSpeed
from ditplan.runtime.ranks.gpu_inventory import Ancestor

SEVERAL_ADAPTERS = 1.5
"""By how much more than one message all GPUs of a host have for another one if each has an adapter
to itself, or shares one with some: one message can't fill a fast adapter, so less says nothing."""

LEAST_LATENCY_S = 1e-7
SHARED: tuple[tuple[str, tuple[Ancestor, ...]], ...] = (
    ("switch", ("board", "pcie-switch", "pcie-switches")),
    ("bridge", ("host-bridge",)),
    ("socket", ("socket",)),
)
"""Nodes that devices share, the nearest first, and the ancestors that lie at or below them."""


@dataclass(frozen=True)
class HostClaims:
    """What a host says of its links; by pairs of its own devices, from 0.

    Attributes:
        device: what its ranks run on.
        ancestors: what pairs share, as far as it is known.
        bridged: pairs that NVLink joins, where it joins some and not all.
        gpu: what its GPUs are called.
        pcie_bytes_per_s: the raw rate of a GPU's PCIe link at its best.
        nvlinks: the fewest that a GPU has active, by NVML, or by NCCL where NVML doesn't say.
        strangers: how many pairs of GPUs may not read each other's memory.
        has_rdma: it has adapters for InfiniBand or RDMA over Ethernet, and NCCL uses them.
        adapters_bytes_per_s: what those claim together, as far as its GPUs can use them at once.
        nearest_adapters: which of those is nearest to each device; empty where nobody knows.
        interface: the one over which its ranks talk to others.
        interface_bytes_per_s: what that one claims; None where it claims nothing.
        faster: another interface that claims more, and what.
    """

    device: DeviceKind
    ancestors: Mapping[Pair, Ancestor]
    bridged: frozenset[Pair] = frozenset()
    gpu: str | None = None
    pcie_bytes_per_s: float | None = None
    nvlinks: int | None = None
    strangers: int = 0
    has_rdma: bool = False
    adapters_bytes_per_s: float | None = None
    nearest_adapters: tuple[int, ...] = ()
    interface: str | None = None
    interface_bytes_per_s: float | None = None
    faster: tuple[str, float] | None = None


@dataclass(frozen=True)
class HostSpeeds:
    """What was measured of a host: by pairs of its own devices; of one message to other hosts; and
    of all that it has for them. Empty or None where nothing was.
    """

    inside: Mapping[Pair, PairSpeed]
    flow: PairSpeed | None = None
    host_bytes_per_s: float | None = None


class _Rates(NamedTuple):
    speeds: HostSpeeds
    source: str


def speeds_by_host(
    hosts: Sequence[HostRanks],
    inside: Sequence[Mapping[Pair, PairSpeed]],
    flow: Sequence[Mapping[Pair, PairSpeed]],
    host: Sequence[Mapping[Pair, PairSpeed]],
) -> dict[str, HostSpeeds]:
    """What rounds tell of each host: of its partners the fastest, as another one can be slow."""
    host_of = {rank: one.name for one in hosts for rank in one.ranks}
    first = {one.name: one.first for one in hosts}
    own: dict[str, dict[Pair, PairSpeed]] = {one.name: {} for one in hosts}
    for (a, b), speed in _items(inside):
        start = first[host_of[a]]
        own[host_of[a]][a - start, b - start] = speed
    flows: dict[str, PairSpeed] = {}
    for pair, speed in _items(flow):
        for name in (host_of[rank] for rank in pair):
            known = flows.get(name)
            if known is None or speed.bytes_per_s > known.bytes_per_s:
                flows[name] = speed
    totals: dict[str, float] = {}
    for found in host:
        sums: dict[tuple[str, str], float] = {}
        for (a, b), speed in found.items():
            names = host_of[a], host_of[b]
            sums[names] = sums.get(names, 0.0) + speed.bytes_per_s
        for names, rate in sums.items():
            for name in names:
                totals[name] = max(rate, totals.get(name, 0.0))
    return {name: HostSpeeds(own[name], flows.get(name), totals.get(name)) for name in own}


def links_of(
    hosts: Sequence[HostRanks],
    claims: Mapping[str, HostClaims],
    speeds: Mapping[str, HostSpeeds],
    common_kind: Callable[[str, LinkKind], LinkKind],
) -> list[Link]:
    """All links: of each host as measured there, or as on hosts of its class where the budget had
    no room for it, which the source says.

    `common_kind` says, of a host and what its devices' links are by claims and rates, what NCCL's
    settings leave of it.
    """
    links: list[Link] = []
    for host in hosts:
        rates = _rates_of(host, hosts, claims, speeds)
        tops, own = _inside(host, claims[host.name], rates, common_kind)
        links += own
        if len(hosts) > 1:
            links += _outside(host, claims[host.name], rates, tops)
    return links


def _rates_of(
    host: HostRanks,
    hosts: Sequence[HostRanks],
    claims: Mapping[str, HostClaims],
    speeds: Mapping[str, HostSpeeds],
) -> _Rates:
    own = speeds[host.name]
    alike = [
        speeds[other.name]
        for other in hosts
        if (other.size, claims[other.name]) == (host.size, claims[host.name])
    ]
    inside = own.inside or next((one.inside for one in alike if one.inside), {})
    flows = [one.flow for one in speeds.values() if one.flow is not None]
    flow = own.flow or (_middle(flows) if flows else None)
    was_measured = (own.inside or host.size == 1) and (own.flow or len(hosts) == 1)
    source = "measured: send_recv" if was_measured else "inferred: as of hosts like it"
    return _Rates(HostSpeeds(inside, flow, own.host_bytes_per_s), source)


def _inside(
    host: HostRanks,
    claims: HostClaims,
    rates: _Rates,
    common_kind: Callable[[str, LinkKind], LinkKind],
) -> tuple[Sequence[str], list[Link]]:
    """The nodes at the top of the host, from which the network is reached, and its links."""
    inside = rates.speeds.inside
    if not inside:
        return [f"{host.name}/{device}" for device in range(host.size)], []
    kind = common_kind(host.name, kind_within(claims, inside))
    bridges: list[Link] = []
    if kind == "nvlink" and claims.bridged:
        bridges = list(_bridges(host, claims.bridged, rates))
        kind = "pcie"
        inside = {pair: speed for pair, speed in inside.items() if pair not in claims.bridged}
    if kind == "pcie" and claims.ancestors:
        tops, links = _tree(host, claims.ancestors, inside, rates.source)
        return tops, bridges + links
    # a star is as fast as its slowest pair: a plan that counts on more is wrong
    rate = min(speed.bytes_per_s for speed in inside.values())
    # two links are crossed from one device to another
    latency_s = min(speed.latency_s for speed in inside.values()) / 2
    node = f"{host.name}/{kind}"
    return [node], bridges + [
        _link(f"{host.name}/{device}", node, kind, (latency_s, rate), rates.source)
        for device in range(host.size)
    ]


def _bridges(host: HostRanks, bridged: frozenset[Pair], rates: _Rates) -> Iterator[Link]:
    """NVLink within the groups of devices that it joins, as fast as a pair of them was."""
    speeds = [speed for pair, speed in rates.speeds.inside.items() if pair in bridged]
    speed = min(speeds, key=lambda one: one.bytes_per_s)
    for number, group in enumerate(_joined(host.size, bridged)):
        for device in group if len(group) > 1 else ():
            way = (speed.latency_s / 2, speed.bytes_per_s)
            node = f"{host.name}/nvlink{number}"
            yield _link(f"{host.name}/{device}", node, "nvlink", way, rates.source)


def kind_within(claims: HostClaims, inside: Mapping[Pair, PairSpeed]) -> LinkKind:
    """What joins the devices of a host: memory those of CPU ranks, GPUs what their fastest pair's
    rate tells.
    """
    if claims.device == "cpu":
        return "memory"
    fastest = max(speed.bytes_per_s for speed in inside.values())
    return class_by_rate(fastest, claims.pcie_bytes_per_s)


def _tree(
    host: HostRanks,
    ancestors: Mapping[Pair, Ancestor],
    inside: Mapping[Pair, PairSpeed],
    source: str,
) -> tuple[Sequence[str], list[Link]]:
    """Switches, host bridges and sockets as claimed; ways that end at a node are as fast as a pair
    was whose nearest common node it is.
    """
    speeds = _speeds_by_level(ancestors, inside)
    tops = {device: f"{host.name}/{device}" for device in range(host.size)}
    links: list[Link] = []
    below_s = 0.0
    for level, (name, _) in enumerate(SHARED):
        speed = speeds[level]
        near = [pair for pair, ancestor in ancestors.items() if _level(ancestor) <= level]
        latency_s = max(LEAST_LATENCY_S, (speed.latency_s - below_s) / 2)
        is_new = False
        for number, group in enumerate(_joined(host.size, near)):
            nodes = dict.fromkeys(tops[device] for device in group)
            if len(nodes) == 1:
                continue
            is_new, top = True, f"{host.name}/{name}{number}"
            way = (latency_s, speed.bytes_per_s)
            links += [_link(node, top, "pcie", way, source) for node in nodes]
            tops |= dict.fromkeys(group, top)
        below_s += 2 * latency_s if is_new else 0.0
    first, *others = dict.fromkeys(tops.values())
    farthest = speeds[len(SHARED)]
    way = (max(LEAST_LATENCY_S, farthest.latency_s - below_s), farthest.bytes_per_s)
    links += [_link(first, other, "socket", way, source) for other in others]
    return [first, *others], links


def _level(ancestor: Ancestor) -> int:
    """How far up the tree an ancestor lies; beyond all nodes where devices share none."""
    return next((i for i, (_, names) in enumerate(SHARED) if ancestor in names), len(SHARED))


def _speeds_by_level(
    ancestors: Mapping[Pair, Ancestor], inside: Mapping[Pair, PairSpeed]
) -> list[PairSpeed]:
    """The slowest measured pair of each level; of a level without one, that of the next one which
    has one, the lower ones first.
    """
    measured: dict[int, PairSpeed] = {}
    for pair, speed in inside.items():
        level = _level(ancestors[pair]) if pair in ancestors else len(SHARED)
        known = measured.get(level)
        if known is None or speed.bytes_per_s < known.bytes_per_s:
            measured[level] = speed
    return [
        measured[min(measured, key=lambda known: (abs(known - level), known))]
        for level in range(len(SHARED) + 1)
    ]


def _joined(size: int, pairs: Iterable[Pair]) -> tuple[tuple[int, ...], ...]:
    """The devices of a host in groups: those of a pair are in one."""
    group_of = {device: {device} for device in range(size)}
    for a, b in pairs:
        joined = group_of[a] | group_of[b]
        group_of |= dict.fromkeys(joined, joined)
    return tuple(dict.fromkeys(tuple(sorted(group)) for group in group_of.values()))


def _outside(
    host: HostRanks, claims: HostClaims, rates: _Rates, tops: Sequence[str]
) -> Iterator[Link]:
    """The links to the network: one adapter for all, or one for each device or some of them, where
    they have together far more than one message has.
    """
    flow, total = rates.speeds.flow, rates.speeds.host_bytes_per_s
    if flow is None:
        return
    inside = rates.speeds.inside.values()
    inner_s = min((speed.latency_s for speed in inside), default=0.0) / 2
    kind: LinkKind = network_by_rate(flow.bytes_per_s) if claims.has_rdma else "ethernet"
    adapters = 1
    if total is not None and total >= SEVERAL_ADAPTERS * flow.bytes_per_s:
        adapters = min(host.size, round(total / flow.bytes_per_s))
    if adapters == 1:
        rate = max(flow.bytes_per_s, total or 0.0)
        way = (max(LEAST_LATENCY_S, flow.latency_s / 2 - inner_s), rate)
        for top in tops[:1]:
            yield _link(top, "network", kind, way, rates.source)
        return
    # no shorter than the way between two devices, or that would lead over an adapter they share
    lane_s = max(LEAST_LATENCY_S, 1.01 * inner_s)
    lane: LinkKind = "memory" if claims.device == "cpu" else "pcie"
    fastest = max([flow.bytes_per_s, *(speed.bytes_per_s for speed in inside)])
    near = claims.nearest_adapters
    # as many as were measured, or the claim isn't about what ranks use
    is_known = set(near) == set(range(adapters))
    for device in range(host.size):
        nic = f"{host.name}/nic{near[device] if is_known else device * adapters // host.size}"
        source = "an adapter's lanes; " + ("nearest by NCCL's topology" if is_known else "assumed")
        yield _link(f"{host.name}/{device}", nic, lane, (lane_s, fastest), source)
    for adapter in range(adapters):
        way = (max(LEAST_LATENCY_S, flow.latency_s / 2 - lane_s), flow.bytes_per_s)
        yield _link(f"{host.name}/nic{adapter}", "network", kind, way, rates.source)


def _link(a: str, b: str, kind: LinkKind, way: tuple[float, float], source: str) -> Link:
    return Link(a=a, b=b, kind=kind, latency_s=way[0], bytes_per_s=way[1], source=source)


def _items(
    rounds: Sequence[Mapping[Pair, PairSpeed]],
) -> Iterator[tuple[Pair, PairSpeed]]:
    for found in rounds:
        yield from found.items()


def _middle(speeds: Sequence[PairSpeed]) -> PairSpeed:
    """The median of rates and that of latencies."""
    return PairSpeed(
        statistics.median(speed.latency_s for speed in speeds),
        statistics.median(speed.bytes_per_s for speed in speeds),
    )
