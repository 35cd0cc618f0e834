"""What NCCL wrote of a host's topology when it made a communicator."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ditplan.profiles.errors import InputError
from ditplan.profiles.files import read_bytes
from ditplan.profiles.nccl_topology import (
    EXPECTED,
    LARGEST_BYTES,
    NcclTopology,
    read_nccl_topology,
)
from ditplan.runtime.groups import RankContext
from ditplan.runtime.profiling.pair_rounds import HostRanks
from ditplan.runtime.ranks.pci_tree import has_device


@dataclass(frozen=True)
class TopologyDump:
    """What NCCL wrote of a host, or the `fault` of what it wrote.

    `is_given`: NCCL was given a file with PCI switches that the system doesn't show, as clouds do
    for their virtual machines.
    """

    topology: NcclTopology = field(default_factory=NcclTopology)
    is_given: bool = False
    fault: str = ""


def topology_of_host(context: RankContext, hosts: Sequence[HostRanks]) -> TopologyDump | None:
    """What NCCL wrote of this rank's host, on the host's first rank; a task for every rank.

    None on all other ranks, of one GPU, on CPUs, and where NCCL wrote nothing.
    """
    is_first = any(context.rank == host.first and host.size > 1 for host in hosts)
    if not is_first or context.topology_file is None:
        return None
    dump = read_dump(context.topology_file)
    return replace(dump, topology=dump.topology.of_host_of(context.rank))


def read_dump(path: Path) -> TopologyDump:
    """Reads what NCCL has written."""
    try:
        content = read_bytes(path, EXPECTED, LARGEST_BYTES)
        topology = read_nccl_topology(content, "NCCL's topology dump")
    except InputError as error:
        return TopologyDump(fault=str(error))
    spots = [one.spot for one in topology.gpus] + [one.spot for one in topology.adapters]
    switches = {switch for spot in spots for switch in spot.switches}
    return TopologyDump(topology, is_given=not all(map(has_device, switches)))
