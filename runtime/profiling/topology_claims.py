"""What NCCL's topology dump adds to a host's claims: what neither NVML nor sysfs says."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

from ditplan.profiles.nccl_topology import ClaimedAdapter, ClaimedGpu, Spot
from ditplan.runtime.profiling.measured_links import HostClaims
from ditplan.runtime.profiling.pair_rounds import Pair
from ditplan.runtime.profiling.topology_dump import TopologyDump
from ditplan.runtime.ranks.gpu_inventory import Ancestor


def with_topology(
    claims: HostClaims, dump: TopologyDump, addresses: Sequence[str], *, is_virtual: bool
) -> HostClaims:
    """The claims of a host whose ranks have the GPUs at these PCI addresses, with what NCCL knows
    besides; as they are where it tells of other GPUs.

    In a virtual machine, whose PCI tree is made up, NCCL's is left out, too, unless it was given.
    """
    by_address = {gpu.address: gpu for gpu in dump.topology.gpus}
    if not all(address in by_address for address in addresses):
        return claims
    gpus = [by_address[address] for address in addresses]
    adapters = dump.topology.adapters
    if adapters:
        claims = replace(
            claims,
            has_rdma=any(adapter.has_rdma for adapter in adapters),
            adapters_bytes_per_s=_rate_together(adapters, len(gpus)),
        )
    if claims.nvlinks is None:
        known = [gpu.nvlinks for gpu in gpus if gpu.nvlinks is not None]
        claims = replace(
            claims,
            nvlinks=min(known) if len(known) == len(gpus) else None,
            bridged=_bridged(gpus),
        )
    if is_virtual and not dump.is_given:
        return claims
    rates = [gpu.link_bytes_per_s for gpu in gpus if gpu.link_bytes_per_s is not None]
    return replace(
        claims,
        ancestors=claims.ancestors or _ancestors(gpus),
        pcie_bytes_per_s=claims.pcie_bytes_per_s or max(rates, default=None),
        nearest_adapters=_nearest_adapters(gpus, adapters),
    )


def shared_by(one: Spot, other: Spot) -> Ancestor | None:
    """The nearest that two devices share; None where nobody knows their processors.

    >>> shared_by(Spot(0, ("a",)), Spot(0, ("a", "b")))
    'pcie-switches'
    >>> shared_by(Spot(None, ()), Spot(None, ()))
    """
    switches = _common(one, other)
    if switches:
        is_nearest = switches == len(one.switches) == len(other.switches)
        return "pcie-switch" if is_nearest else "pcie-switches"
    if one.numa_node is None or other.numa_node is None:
        return None
    # NCCL doesn't tell host bridges of a node apart
    return "socket" if one.numa_node == other.numa_node else "system"


def _common(one: Spot, other: Spot) -> int:
    """How many switches are above both."""
    pairs = zip(one.switches, other.switches, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _ancestors(gpus: Sequence[ClaimedGpu]) -> dict[Pair, Ancestor]:
    """Of all pairs; none where one isn't known: half a tree says less."""
    found: dict[Pair, Ancestor] = {}
    for (i, one), (j, other) in itertools.combinations(enumerate(gpus), 2):
        ancestor = shared_by(one.spot, other.spot)
        if ancestor is None:
            return {}
        found[i, j] = ancestor
    return found


def _bridged(gpus: Sequence[ClaimedGpu]) -> frozenset[Pair]:
    """The pairs that NVLink joins, by bridges or switches, if it joins some and not all."""
    pairs = [
        (i, j)
        for (i, one), (j, other) in itertools.combinations(enumerate(gpus), 2)
        if other.address in one.peers or (one.has_switch and other.has_switch)
    ]
    everybody = len(gpus) * (len(gpus) - 1) // 2
    return frozenset(pairs) if len(pairs) < everybody else frozenset()


def _rate_together(adapters: Sequence[ClaimedAdapter], gpus: int) -> float | None:
    """What RDMA adapters claim together, of each GPU one: no rank sends by two at once; None where
    one of them claims nothing.
    """
    rates = [adapter.bytes_per_s for adapter in adapters if adapter.has_rdma]
    known = [rate for rate in rates if rate is not None]
    if not known or len(known) < len(rates):
        return None
    return sum(sorted(known, reverse=True)[:gpus])


def _nearest_adapters(
    gpus: Sequence[ClaimedGpu], adapters: Sequence[ClaimedAdapter]
) -> tuple[int, ...]:
    """The RDMA adapter that is nearest to each GPU, of equally near ones that of the fewest GPUs;
    none where places aren't known.
    """
    rdma = [adapter.spot for adapter in adapters if adapter.has_rdma]
    if not rdma or any(spot.numa_node is None for spot in (*rdma, *(gpu.spot for gpu in gpus))):
        return ()
    users = [0] * len(rdma)
    chosen = []
    for gpu in gpus:
        nearness = [
            (_common(gpu.spot, spot), gpu.spot.numa_node == spot.numa_node) for spot in rdma
        ]
        nearest = max(range(len(rdma)), key=lambda place: (*nearness[place], -users[place]))
        users[nearest] += 1
        chosen.append(nearest)
    return tuple(chosen)
