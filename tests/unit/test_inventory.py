"""What is said of devices and their links, from what NVML and the environment say."""

import dataclasses

import psutil
import pytest
import torch

from ditplan.profiles.cluster import Device, LinkKind
from ditplan.runtime.groups import GroupCache, RankContext
from ditplan.runtime.ranks.devices import (
    DeviceReport,
    common_link_kind,
    device_warnings,
    inspect_device,
)
from ditplan.runtime.ranks.gpu_inventory import Gpu, gpu_inventory, gpu_of, numa_node, pci_address

FACTS = Gpu(
    index=0,
    name="NVIDIA H100",
    uuid="GPU-0",
    pci_address="0000:1b:00.0",
    memory_bytes=80 << 30,
    free_bytes=79 << 30,
    driver="580.159",
    nvlinks=18,
    pcie_generation=1,
    pcie_generation_max=5,
    pcie_width=16,
    pcie_width_max=16,
    numa_node=0,
)


def report(facts: Gpu | None, kind: str = "cuda") -> DeviceReport:
    device = Device.model_validate(
        {"name": "H100", "kind": kind, "memory_bytes": 80 << 30, "half_flops_per_s": 8e14}
        | {"single_flops_per_s": 5e13, "memory_bytes_per_s": 3e12, "source": "test"}
    )
    return DeviceReport(device, facts)


def test_this_cpu_is_described_and_measured() -> None:
    context = RankContext(0, 2, torch.device("cpu"), GroupCache(0, 2))
    device = inspect_device(context).device
    assert device.kind == "cpu"
    assert device.name
    assert device.memory_bytes == psutil.virtual_memory().total // 2
    # Any CPU of the last twenty years, and no CPU of today.
    assert 1e8 < device.single_flops_per_s < 1e15
    assert 1e8 < device.memory_bytes_per_s < 1e13


def test_half_width_and_throttling_are_warned_of_but_idle_generation_is_not() -> None:
    assert device_warnings([report(FACTS), report(None, "cpu")]) == []
    narrow = dataclasses.replace(FACTS, pcie_width=8)
    hot = dataclasses.replace(FACTS, throttled_by=("hardware thermal slowdown",))
    warnings = device_warnings([report(FACTS), report(narrow), report(hot)])
    assert warnings[0].startswith("GPU 1: its PCIe link has 8 lanes of 16")
    assert warnings[1].startswith("GPU 2 throttles (hardware thermal slowdown)")
    assert len(warnings) == 2


@pytest.mark.parametrize(
    ("kinds", "environment", "common"),
    [
        (["nvlink", "nvlink"], {}, "nvlink"),
        (["nvlink", "pcie"], {}, "pcie"),
        (["nvlink", "nvlink"], {"NCCL_P2P_DISABLE": "1"}, "pcie"),
        (["nvlink", "nvlink"], {"NCCL_P2P_DISABLE": "1", "NCCL_SHM_DISABLE": "1"}, "ethernet"),
        (["memory", "memory"], {"NCCL_P2P_DISABLE": "1"}, "memory"),
    ],
)
def test_a_link_is_what_all_have_and_nccl_may_use(
    kinds: list[LinkKind], environment: dict[str, str], common: str
) -> None:
    assert common_link_kind(kinds, environment) == common


def test_an_unknown_gpu_has_no_facts() -> None:
    assert gpu_of("GPU-00000000-0000-0000-0000-000000000000") is None


def test_the_inventory_has_the_gpus_that_torch_has_or_says_why_it_has_none() -> None:
    found = gpu_inventory()
    if found.fault:
        assert (found.gpus, found.pairs, found.driver) == ((), (), None)
        assert not torch.cuda.is_available()
        return
    assert len(found.gpus) >= torch.cuda.device_count()
    assert len(found.pairs) == len(found.gpus) * (len(found.gpus) - 1) // 2
    assert [gpu_of(gpu.uuid) for gpu in found.gpus] == list(found.gpus)


def test_what_nvml_does_not_say_is_shown_as_unknown() -> None:
    mute = dataclasses.replace(
        FACTS, nvlinks=None, pcie_generation=None, pcie_generation_max=None, numa_node=None
    )
    assert str(mute) == "NVLinks unknown, PCIe generation unknown (at most unknown) x16"
    assert str(FACTS) == "18 NVLinks, PCIe generation 1 (at most 5) x16, NUMA node 0"


def test_pci_addresses_are_those_of_sysfs() -> None:
    assert pci_address("00000000:1B:00.0") == "0000:1b:00.0"
    assert pci_address("00010002:81:00.0") == "10002:81:00.0"
    assert numa_node("0000:ff:1f.7") is None
    assert numa_node(None) is None
