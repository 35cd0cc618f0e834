"""Classes of links, told by what was measured: claims of drivers and interfaces are only claims."""

from typing import Literal

from ditplan.profiles.cluster import LinkKind

LinkClass = Literal[
    "nvlink", "pcie switch", "host bridge", "socket", "ethernet", "infiniband", "memory", "pcie"
]
"""What the way between two ranks crosses at its farthest: NVLink; a PCIe switch; the host bridge of
their processor; the link between two processors; a network. CPU ranks of a host share memory; plain
`pcie` is PCIe of which nobody knows the wiring, as in a virtual machine."""

BEYOND_PCIE = 1.1
"""By how much more than PCIe's raw rate nothing goes over PCIe: measurements err a little."""

FASTEST_TCP_BYTES_PER_S = 4e9
"""More than one NCCL message reaches over TCP, and less than RDMA does on adapters that have it:
1.4 GB/s was fitted for 100 Gbit/s (2x8xl40-pcie-eth100)."""


def class_by_rate(bytes_per_s: float, pcie_bytes_per_s: float | None) -> Literal["nvlink", "pcie"]:
    """What joins two GPUs of a host that exchange so much each way: NVLink if no PCIe link of
    theirs could, of which `pcie_bytes_per_s` is the raw rate. Where that is unknown, nothing beyond
    PCIe is claimed.

    >>> class_by_rate(263e9, 63e9), class_by_rate(50e9, 63e9), class_by_rate(263e9, None)
    ('nvlink', 'pcie', 'pcie')
    """
    if pcie_bytes_per_s is None:
        return "pcie"
    return "nvlink" if bytes_per_s > BEYOND_PCIE * pcie_bytes_per_s else "pcie"


def network_by_rate(bytes_per_s: float) -> LinkKind:
    """What joins hosts that exchange so much each way: more than TCP carries is taken for
    InfiniBand; RDMA over Ethernet can't be told from it, and costs the same.
    """
    return "infiniband" if bytes_per_s > FASTEST_TCP_BYTES_PER_S else "ethernet"
