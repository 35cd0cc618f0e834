"""Hosts as preflight sees them, for tests."""

from typing import Any

from ditplan.profiles.host import Host
from ditplan.profiles.host_choice import ChosenHost
from ditplan.runtime.ranks.gpu_inventory import Gpu
from ditplan.runtime.ranks.host_probes import GpuProduct
from ditplan.runtime.ranks.host_report import HostFacts
from ditplan.runtime.ranks.host_view import Clock, HostView
from ditplan.runtime.ranks.interface_choice import ChosenInterface, Interface

VERSIONS: dict[str, str | None] = {
    "python": "3.11",
    "ditplan": "0123456789ab",
    "torch": "2.13.0+cu130",
    "diffusers": "0.42.1",
    "transformers": "5.23.0",
    "flash-attn": None,
    "nccl": "2.28.9",
}
HERE = {"python": "3.11", "ditplan": "0123456789ab"}


def a_gpu(number: int, **changes: Any) -> Gpu:
    """An idle GPU of 80 GiB."""
    facts: dict[str, Any] = {
        "index": number,
        "name": "NVIDIA H100 80GB HBM3",
        "uuid": f"GPU-{number}0000000-0000-0000-0000-000000000000",
        "pci_address": f"0000:{number:02x}:00.0",
        "memory_bytes": 80 << 30,
        "free_bytes": 79 << 30,
        "driver": "580.95.05",
        "nvlinks": 18,
        "pcie_generation": 5,
        "pcie_generation_max": 5,
        "pcie_width": 16,
        "pcie_width_max": 16,
        "numa_node": 0,
    }
    return Gpu(**facts | changes)


def a_product(number: int, flops_per_s: float = 7e14, clock_mhz: int = 1755) -> GpuProduct:
    """What `a_gpu` does of a small product."""
    return GpuProduct(a_gpu(number).uuid, flops_per_s, clock_mhz, 1980)


def some_facts(name: str, **changes: Any) -> HostFacts:
    """What a host with two GPUs says that nothing is wrong with."""
    facts: dict[str, Any] = {
        "hostname": name,
        "namespace": f"{name} net:[1]",
        "machine": "x86_64",
        "python": "3.11.7",
        "cores": 64,
        "memory_free_bytes": 500 << 30,
        "ssh_connection": None,
        "environment": {},
        "interfaces": (Interface("eth0", ("10.0.0.1",), is_up=True, is_loopback=False),),
        "versions": VERSIONS,
        "gpus": (a_gpu(0), a_gpu(1)),
        "gpus_in_all": 2,
        "driver": "580.95.05",
        "gpu_products": (a_product(0), a_product(1)),
        "product_rate": 5e7,
        "disk_folder": "/tmp",
        "disk_free_bytes": 100 << 30,
        "names": {},
    }
    return HostFacts(**facts | changes)


def a_view(name: str, *, slots: int | None = None, **changes: Any) -> HostView:
    """A host that was reached by ssh; `changes` are of its facts."""
    return HostView(
        ChosenHost(Host(name, slots=slots)),
        launcher="ssh",
        facts=some_facts(name, **changes),
        clock=Clock(0.001, 0.002),
        address=ChosenInterface("eth0", "10.0.0.1"),
        unreached={},
    )
