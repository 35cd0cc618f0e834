"""What hosts say of themselves that bears on their links: asked of one rank each."""

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from ditplan.profiles.data_sheets import PCIE_LANE_BYTES_PER_S
from ditplan.runtime.groups import RankContext
from ditplan.runtime.profiling.measured_links import HostClaims
from ditplan.runtime.profiling.pair_rounds import Pair
from ditplan.runtime.profiling.topology_claims import with_topology
from ditplan.runtime.profiling.topology_dump import TopologyDump
from ditplan.runtime.ranks.devices import DeviceReport
from ditplan.runtime.ranks.environment import environment
from ditplan.runtime.ranks.gpu_inventory import Ancestor, Gpu, GpuInventory, gpu_inventory
from ditplan.runtime.ranks.pci_tree import common_ancestor, is_virtual, pci_path

RDMA = Path("/sys/class/infiniband")
BYTES_PER_MBIT = 125_000


@dataclass(frozen=True)
class HostReport:
    """A host's GPUs, and the way to each in its PCI tree, which a virtual machine makes up: none
    there; whether it has RDMA adapters; its interface for ranks, and what interfaces claim, in
    bytes/s.
    """

    is_virtual: bool
    inventory: GpuInventory
    paths: tuple[tuple[str, ...], ...]
    has_rdma: bool
    interface: str | None
    interfaces: Mapping[str, float | None]


def inspect_host(context: RankContext, asked: Sequence[int]) -> HostReport | None:
    """This rank's host, if the rank is among those that are asked; a task for every rank."""
    if context.rank not in asked:
        return None
    inventory = gpu_inventory() if context.device.type == "cuda" else GpuInventory()
    virtual = is_virtual()
    with contextlib.suppress(OSError):
        has_rdma = any(RDMA.iterdir())
        return _report(inventory, virtual, has_rdma)
    return _report(inventory, virtual, False)


def _report(inventory: GpuInventory, virtual: bool, has_rdma: bool) -> HostReport:
    stats = psutil.net_if_stats()
    up = {name: one for name, one in stats.items() if one.isup and "loopback" not in one.flags}
    return HostReport(
        is_virtual=virtual,
        inventory=inventory,
        paths=tuple(
            () if virtual or gpu.pci_address is None else pci_path(gpu.pci_address)
            for gpu in inventory.gpus
        ),
        has_rdma=has_rdma,
        interface=environment().get("GLOO_SOCKET_IFNAME"),
        interfaces={name: one.speed * BYTES_PER_MBIT or None for name, one in up.items()},
    )


def claims_of(
    report: HostReport, devices: Sequence[DeviceReport], dump: TopologyDump | None = None
) -> HostClaims:
    """What a host claims of the devices of its ranks; of its `dump` what nothing else says."""
    interface = report.interface if report.interface in report.interfaces else None
    others = {name: rate for name, rate in report.interfaces.items() if rate and name != interface}
    fastest = max(others, key=lambda name: others[name] or 0.0, default=None)
    claims = HostClaims(
        device=devices[0].device.kind,
        ancestors={},
        has_rdma=report.has_rdma,
        interface=interface,
        interface_bytes_per_s=report.interfaces.get(interface) if interface else None,
        faster=None if fastest is None or not interface else (fastest, others[fastest] or 0.0),
    )
    facts = [one.facts for one in devices]
    if any(gpu is None for gpu in facts):
        return claims
    gpus = [gpu for gpu in facts if gpu is not None]
    claims = _with_gpus(claims, report, gpus)
    if dump is None:
        return claims
    addresses = [gpu.pci_address or "" for gpu in gpus]
    return with_topology(claims, dump, addresses, is_virtual=report.is_virtual)


def _with_gpus(claims: HostClaims, report: HostReport, gpus: Sequence[Gpu]) -> HostClaims:
    places = {gpu.uuid: place for place, gpu in enumerate(report.inventory.gpus)}
    pairs = {(pair.a, pair.b): pair for pair in report.inventory.pairs}
    ancestors: dict[Pair, Ancestor] = {}
    bridged: set[Pair] = set()
    strangers = 0
    for (i, one), (j, other) in itertools.combinations(enumerate(gpus), 2):
        if one.uuid not in places or other.uuid not in places:
            continue
        a, b = sorted((places[one.uuid], places[other.uuid]))
        strangers += pairs[a, b].peer_access is False
        if pairs[a, b].nvlink:
            bridged.add((i, j))
        found = pairs[a, b].ancestor or common_ancestor(
            report.paths[a], report.paths[b], (one.numa_node, other.numa_node)
        )
        if found is not None:
            ancestors[i, j] = found
    everybody = len(gpus) * (len(gpus) - 1) // 2
    known = [gpu.nvlinks for gpu in gpus if gpu.nvlinks is not None]
    rates = [
        PCIE_LANE_BYTES_PER_S[gpu.pcie_generation_max] * gpu.pcie_width_max
        for gpu in gpus
        if gpu.pcie_generation_max in PCIE_LANE_BYTES_PER_S and gpu.pcie_width_max
    ]
    return replace(
        claims,
        # half a tree says less than none
        ancestors=ancestors if len(ancestors) == everybody else {},
        bridged=frozenset(bridged) if len(bridged) < everybody else frozenset(),
        gpu=gpus[0].name,
        pcie_bytes_per_s=max(rates, default=None),
        nvlinks=min(known) if len(known) == len(gpus) else None,
        strangers=strangers,
    )
