"""The GPUs of this machine as NVML tells of them: nothing else lists GPUs. Imports no torch.

What NVML doesn't say is None, never a guess: in a virtual machine with passed-through GPUs it has
no answer to questions about NVLinks and common bridges.
"""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Ancestor = Literal["board", "pcie-switch", "pcie-switches", "host-bridge", "socket", "system"]
"""The nearest that two GPUs share: one board; a PCIe switch, or several; a host bridge; a socket
(NUMA node); only the system, so that data between them crosses sockets."""

ANCESTORS: dict[int, Ancestor] = {
    0: "board",
    10: "pcie-switch",
    20: "pcie-switches",
    30: "host-bridge",
    40: "socket",
    50: "system",
}
"""Of NVML's `nvmlGpuTopologyLevel_t`."""

# NVML's bits for reasons that a healthy, well cooled GPU doesn't give; a power cap alone is usual.
THROTTLE_REASONS = {
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
# `nvmlGpuP2PCapsIndex_t`; nvidia-ml-py's own name for the first one is a tuple
P2P_READ, P2P_NVLINK = 0, 2
P2P_OK, P2P_UNKNOWN = 0, 6


@dataclass(frozen=True)
class Gpu:
    """What NVML says of a GPU; None where it doesn't know.

    `index` is NVML's, by PCI address, whatever CUDA_VISIBLE_DEVICES says. `nvlinks` is the number
    of active ones. A PCIe generation is that of now, which an idle GPU lowers; a width is in lanes.
    """

    index: int | None
    name: str | None
    uuid: str
    pci_address: str | None
    memory_bytes: int | None
    free_bytes: int | None
    driver: str | None
    nvlinks: int | None
    pcie_generation: int | None
    pcie_generation_max: int | None
    pcie_width: int | None
    pcie_width_max: int | None
    numa_node: int | None
    throttled_by: tuple[str, ...] = ()

    def __str__(self) -> str:
        links = "NVLinks unknown" if self.nvlinks is None else f"{self.nvlinks} NVLinks"
        numa = "" if self.numa_node is None else f", NUMA node {self.numa_node}"
        generation, most = map(_shown, (self.pcie_generation, self.pcie_generation_max))
        return (
            f"{links}, PCIe generation {generation} (at most {most}) "
            f"x{_shown(self.pcie_width)}{numa}"
        )


@dataclass(frozen=True)
class GpuPair:
    """What NVML says of two GPUs, by their place in the inventory; None where it doesn't know.

    `peer_access`: each may read the other's memory. `nvlink`: they may do so over NVLink.
    """

    a: int
    b: int
    ancestor: Ancestor | None
    peer_access: bool | None
    nvlink: bool | None


@dataclass(frozen=True)
class GpuInventory:
    """All GPUs of this machine by PCI address, and each pair of them.

    `cuda` is the newest CUDA version that the driver runs. `fault` says why nothing is known, such
    as that there is no driver; it is empty where NVML answers.
    """

    gpus: tuple[Gpu, ...] = ()
    pairs: tuple[GpuPair, ...] = ()
    driver: str | None = None
    cuda: str | None = None
    fault: str = field(default="", compare=False)


def gpu_inventory() -> GpuInventory:
    """Asks NVML for all GPUs of this machine; none, and why, where it can't be asked."""
    with _nvml() as (nvml, fault):
        if nvml is None:
            return GpuInventory(fault=fault)
        ask = functools.partial(_ask, nvml)
        handles = [
            handle
            for index in range(ask(nvml.nvmlDeviceGetCount) or 0)
            if (handle := ask(nvml.nvmlDeviceGetHandleByIndex, index)) is not None
        ]
        version = ask(nvml.nvmlSystemGetCudaDriverVersion_v2)
        return GpuInventory(
            gpus=tuple(_gpu(nvml, handle) for handle in handles),
            pairs=tuple(
                _pair(nvml, handles, a, b)
                for a, b in itertools.combinations(range(len(handles)), 2)
            ),
            driver=_text(ask(nvml.nvmlSystemGetDriverVersion)),
            cuda=f"{version // 1000}.{version % 1000 // 10}" if version else None,
        )


def gpu_of(uuid: str) -> Gpu | None:
    """Asks NVML for the GPU with a UUID, with or without `GPU-` before it; None where it can't be
    asked, or knows none.
    """
    with _nvml() as (nvml, _):
        if nvml is None:
            return None
        full = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
        handle = _ask(nvml, nvml.nvmlDeviceGetHandleByUUID, full)
        return None if handle is None else _gpu(nvml, handle)


def clock_of(uuid: str) -> tuple[int | None, int | None]:
    """The clock of a GPU's processors and the most that it can be, in MHz; None for what NVML
    doesn't say.
    """
    with _nvml() as (nvml, _):
        if nvml is None:
            return None, None
        handle = _ask(nvml, nvml.nvmlDeviceGetHandleByUUID, uuid)
        if handle is None:
            return None, None
        now, most = nvml.nvmlDeviceGetClockInfo, nvml.nvmlDeviceGetMaxClockInfo
        return _ask(nvml, now, handle, nvml.NVML_CLOCK_SM), _ask(
            nvml, most, handle, nvml.NVML_CLOCK_SM
        )


@contextlib.contextmanager
def _nvml() -> Iterator[tuple[Any, str]]:
    """NVML, begun; None and the reason where that can't be."""
    try:
        import pynvml
    except ImportError:
        yield None, "nvidia-ml-py isn't installed"
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        yield None, f"NVML: {error}"
        return
    try:
        yield pynvml, ""
    finally:
        pynvml.nvmlShutdown()


def _ask(nvml: Any, function: Callable[..., Any], *args: Any) -> Any:
    """An answer of NVML's; None where it, or the driver, has none."""
    try:
        return function(*args)
    except nvml.NVMLError:
        return None


def _gpu(nvml: Any, handle: Any) -> Gpu:
    ask = functools.partial(_ask, nvml)
    bus, memory = ask(nvml.nvmlDeviceGetPciInfo, handle), ask(nvml.nvmlDeviceGetMemoryInfo, handle)
    address = None if bus is None else pci_address(_text(bus.busId) or "")
    reasons = ask(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle) or 0
    states = [
        ask(nvml.nvmlDeviceGetNvLinkState, handle, link)
        for link in range(nvml.NVML_NVLINK_MAX_LINKS)
    ]
    return Gpu(
        index=ask(nvml.nvmlDeviceGetIndex, handle),
        name=_text(ask(nvml.nvmlDeviceGetName, handle)),
        uuid=_text(ask(nvml.nvmlDeviceGetUUID, handle)) or "",
        pci_address=address,
        memory_bytes=None if memory is None else int(memory.total),
        free_bytes=None if memory is None else int(memory.free),
        driver=_text(ask(nvml.nvmlSystemGetDriverVersion)),
        nvlinks=sum(state == 1 for state in states) if any(s is not None for s in states) else None,
        pcie_generation=ask(nvml.nvmlDeviceGetCurrPcieLinkGeneration, handle),
        pcie_generation_max=ask(nvml.nvmlDeviceGetMaxPcieLinkGeneration, handle),
        pcie_width=ask(nvml.nvmlDeviceGetCurrPcieLinkWidth, handle),
        pcie_width_max=ask(nvml.nvmlDeviceGetMaxPcieLinkWidth, handle),
        numa_node=numa_node(address),
        throttled_by=tuple(text for bit, text in THROTTLE_REASONS.items() if reasons & bit),
    )


def _pair(nvml: Any, handles: list[Any], a: int, b: int) -> GpuPair:
    level = _ask(nvml, nvml.nvmlDeviceGetTopologyCommonAncestor, handles[a], handles[b])
    read, nvlink = (
        _ask(nvml, nvml.nvmlDeviceGetP2PStatus, handles[a], handles[b], capability)
        for capability in (P2P_READ, P2P_NVLINK)
    )
    return GpuPair(
        a,
        b,
        ancestor=None if level is None else ANCESTORS.get(level),
        peer_access=None if read in (None, P2P_UNKNOWN) else read == P2P_OK,
        nvlink=None if nvlink in (None, P2P_UNKNOWN) else nvlink == P2P_OK,
    )


def pci_address(bus_id: str) -> str:
    """A PCI address as sysfs writes it.

    >>> pci_address("00000000:1B:00.0")
    '0000:1b:00.0'
    """
    domain, _, rest = bus_id.lower().partition(":")
    return f"{domain.lstrip('0').zfill(4)}:{rest}"


def numa_node(address: str | None) -> int | None:
    """The NUMA node of a PCI address; None where there is just one, or sysfs doesn't say."""
    with contextlib.suppress(OSError, ValueError):
        node = int(Path(f"/sys/bus/pci/devices/{address}/numa_node").read_text())
        return node if node >= 0 else None
    return None


def _text(answer: str | bytes | None) -> str | None:
    return answer.decode(errors="replace") if isinstance(answer, bytes) else answer


def _shown(number: int | None) -> str:
    return "unknown" if number is None else str(number)
