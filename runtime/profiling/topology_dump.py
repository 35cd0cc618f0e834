"""Has NCCL write down the topology of each host, as it does when it makes a communicator."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist

from ditplan.profiles.errors import InputError
from ditplan.profiles.files import read_bytes
from ditplan.profiles.nccl_topology import (
    EXPECTED,
    LARGEST_BYTES,
    NcclTopology,
    read_nccl_topology,
)
from ditplan.runtime.groups import GROUP_TIMEOUT, RankContext
from ditplan.runtime.profiling.pair_rounds import HostRanks
from ditplan.runtime.ranks.environment import variable_set
from ditplan.runtime.ranks.pci_tree import has_device

VARIABLE = "NCCL_TOPO_DUMP_FILE"


@dataclass(frozen=True)
class TopologyDump:
    """What NCCL wrote of a host, or the `fault` of what it wrote.

    `is_given`: NCCL was given a file with PCI switches that the system doesn't show, as clouds do
    for their virtual machines.
    """

    topology: NcclTopology = field(default_factory=NcclTopology)
    is_given: bool = False
    fault: str = ""


def dump_topology(context: RankContext, hosts: Sequence[HostRanks]) -> TopologyDump | None:
    """What NCCL writes of this rank's host, on the host's first rank; a task for every rank.

    None on all other ranks, of one GPU, on CPUs, and where NCCL writes nothing.
    """
    if context.device.type != "cuda":
        return None
    mine = None
    for host in hosts:
        if host.size < 2:
            continue
        # of a communicator the first rank writes
        if context.rank != host.first:
            _make_communicator(context, host.ranks)
            continue
        with tempfile.TemporaryDirectory(prefix="ditplan-topology-") as folder:
            path = Path(folder) / "dump.xml"
            with variable_set(VARIABLE, str(path)):
                _make_communicator(context, host.ranks)
            mine = read_dump(path) if path.exists() else None
    return mine


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


def _make_communicator(context: RankContext, ranks: Sequence[int]) -> None:
    """Makes one of some ranks and ends it again; every rank takes part in making it."""
    group = dist.new_group(list(ranks), timeout=GROUP_TIMEOUT)
    if context.rank in ranks:
        # without a device bound to the world's group, NCCL makes it when it is first used
        dist.all_reduce(torch.zeros(1, device=context.device), group=group)
        torch.cuda.synchronize(context.device)
        dist.destroy_process_group(group)
