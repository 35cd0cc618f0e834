"""Where devices sit in this machine's tree of PCIe switches and host bridges, by sysfs."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from ditplan.runtime.ranks.gpu_inventory import Ancestor

DEVICES = Path("/sys/bus/pci/devices")
PROCESSORS = Path("/proc/cpuinfo")


def pci_path(address: str, devices: Path = DEVICES) -> tuple[str, ...]:
    """What lies between the processor and a PCI address, from the host bridge on, which is named
    `pci0000:00`; nothing where sysfs doesn't say.
    """
    with contextlib.suppress(OSError):
        parts = (devices / address).resolve(strict=True).parts
        roots = [place for place, part in enumerate(parts) if part.startswith("pci")]
        if roots:
            return parts[roots[0] :]
    return ()


def has_device(address: str, devices: Path = DEVICES) -> bool:
    """Whether this machine has a PCI device at an address."""
    return (devices / address).exists()


def common_ancestor(
    path: Sequence[str], other: Sequence[str], nodes: tuple[int | None, int | None]
) -> Ancestor | None:
    """The nearest that two devices share, by their paths and NUMA nodes; None where unknown.

    >>> common_ancestor(("pci0000:00", "0000:00:01.0", "a"), ("pci0000:00", "0000:00:01.0", "b"),
    ...                 (0, 0))
    'pcie-switch'
    """
    if not path or not other:
        return None
    if path[0] != other[0]:
        return "socket" if nodes[0] == nodes[1] else "system"
    shared = 0
    while shared < min(len(path), len(other)) and path[shared] == other[shared]:
        shared += 1
    if shared == 1:
        return "host-bridge"
    # a switch is a port towards the processor, and one towards each device
    return "pcie-switch" if max(len(path), len(other)) - shared <= 2 else "pcie-switches"


def is_virtual(processors: Path = PROCESSORS) -> bool:
    """Whether this is a virtual machine, whose PCI tree is made up."""
    with contextlib.suppress(OSError):
        return any(
            line.startswith("flags") and " hypervisor" in line
            for line in processors.read_text().splitlines()
        )
    return False
