"""What a rank's device is and how fast it is at most, asked from NVML and psutil and measured."""

import contextlib
import platform
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from ditplan.profiles.cluster import Device, LinkKind
from ditplan.runtime.groups import RankContext
from ditplan.runtime.ranks.gpu_inventory import Gpu, gpu_of
from ditplan.runtime.ranks.left_set import is_set

MEASURE_S = 0.2


@dataclass(frozen=True)
class DeviceReport:
    """A rank's device, and what NVML says of it when it is a GPU and nvidia-ml-py is installed."""

    device: Device
    facts: Gpu | None


def inspect_device(context: RankContext) -> DeviceReport:
    """Describes this rank's device and measures its peak rates; a task for every rank at once."""
    if context.device.type == "cuda":
        return _inspect_gpu(context)
    single, copied = _matmul_rate(context.device, torch.float32, 1024), _copy_rate(context.device)
    device = Device(
        name=device_name(context),
        kind="cpu",
        memory_bytes=max(1, psutil.virtual_memory().total // context.world_size),
        half_flops_per_s=single,
        single_flops_per_s=single,
        memory_bytes_per_s=copied,
        measured=True,
        source=f"measured on {context.world_size} ranks at once: fp32 matmul (taken for half "
        "precision too) and copy, memory shared out evenly",
    )
    return DeviceReport(device, None)


def device_name(context: RankContext) -> str:
    """What this rank's device is called; profiles and plans know it by this name."""
    if context.device.type == "cuda":
        return torch.cuda.get_device_name(context.device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def host_name(environment: Mapping[str, str]) -> str:
    """What this host is called: a node of Slurm by its own name, as several may be one machine."""
    return environment.get("SLURMD_NODENAME") or socket.gethostname()


def device_warnings(reports: Sequence[DeviceReport]) -> list[str]:
    """PCIe links that run at half their width or less, and GPUs that throttle, by rank."""
    warnings = []
    for rank, facts in ((rank, report.facts) for rank, report in enumerate(reports)):
        if facts is None:
            continue
        width, width_max = facts.pcie_width, facts.pcie_width_max
        if width and width_max and 2 * width <= width_max:
            warnings.append(
                f"GPU {rank}: its PCIe link has {width} lanes of {width_max}; check its slot"
            )
        if facts.throttled_by:
            warnings.append(
                f"GPU {rank} throttles ({', '.join(facts.throttled_by)}); check power and cooling"
            )
    return warnings


def link_kind(context: RankContext) -> LinkKind | None:
    """What connects this rank's device to those of the other ranks of its host, at best, as NVML
    claims; None where it doesn't say.
    """
    if context.device.type == "cpu":
        return "memory"
    gpu = gpu_of(str(torch.cuda.get_device_properties(context.device).uuid))
    if gpu is None or gpu.nvlinks is None:
        return None
    return "nvlink" if gpu.nvlinks else "pcie"


def common_link_kind(
    kinds: Sequence[LinkKind | None], environment: Mapping[str, str]
) -> LinkKind | None:
    """The kind that holds for all: NVLink only where every device has it and NCCL may use it; None
    where one that isn't known decides.

    GPUs that may use neither it nor memory of the host talk as over a network.
    """
    kind = next((kind for kind in kinds if kind not in ("nvlink", None)), None)
    if kind is None and None not in kinds:
        kind = "nvlink"
    if kind == "memory" or not is_set("NCCL_P2P_DISABLE", environment):
        return kind
    return "pcie" if may_share_memory(environment) else "ethernet"


def may_share_memory(environment: Mapping[str, str]) -> bool:
    """Whether ranks of a host may share its memory."""
    return not is_set("NCCL_SHM_DISABLE", environment)


def _inspect_gpu(context: RankContext) -> DeviceReport:
    properties = torch.cuda.get_device_properties(context.device)
    single = _matmul_rate(context.device, torch.float32, 4096)
    copied = _copy_rate(context.device)
    half = _matmul_rate(context.device, torch.bfloat16, 8192)
    # Asked right after the load, before the GPU has gone back to idle clocks and links.
    facts = gpu_of(str(properties.uuid))
    device = Device(
        name=device_name(context),
        kind="cuda",
        memory_bytes=properties.total_memory,
        half_flops_per_s=half,
        single_flops_per_s=single,
        memory_bytes_per_s=copied,
        measured=True,
        source="measured: bf16 and fp32 matmul, copy",
    )
    return DeviceReport(device, facts)


def _matmul_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """FLOP/s of a square matmul, the best of some."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2.0 * size**3 / min(_durations(device, lambda: a @ b))


def _copy_rate(device: torch.device) -> float:
    """Bytes/s read and written together while copying, the best of some."""
    megabytes = 1024 if device.type == "cuda" else 64
    source = torch.zeros(megabytes << 20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2.0 * source.numel() / min(_durations(device, lambda: target.copy_(source)))


def _durations(device: torch.device, work: Callable[[], object]) -> Iterator[float]:
    """Seconds of one call, again and again for `MEASURE_S`; the first call doesn't count."""
    calls = 5 if device.type == "cuda" else 1
    work()
    end = time.perf_counter() + MEASURE_S
    while True:
        _synchronize(device)
        start = time.perf_counter()
        for _ in range(calls):
            work()
        _synchronize(device)
        now = time.perf_counter()
        yield (now - start) / calls
        if now > end:
            return


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
