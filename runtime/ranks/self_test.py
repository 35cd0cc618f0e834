"""What a rank finds where it is, and a self-test of a second: launches, a block, a collective."""

import importlib.metadata
import platform
import time
from collections.abc import Callable, Sequence

import psutil
import torch
import torch.distributed as dist
from torch.nn import functional

from ditplan.profiles.fingerprint import RankFacts, RankSpeed
from ditplan.runtime.groups import RankContext
from ditplan.runtime.ranks.devices import device_name
from ditplan.runtime.ranks.gpu_inventory import gpu_of

ROUNDS, LAUNCHES = 10, 200
BLOCK_TIME_S = 0.2
COLLECTIVE_BYTES = {"cuda": 16 << 20, "cpu": 1 << 18}
# (tokens, width) of the block, with heads of 64
BLOCK = {"cuda": (4096, 1536), "cpu": (256, 256)}
HEAD_DIM = 64


def software_versions(context: RankContext) -> dict[str, str]:
    """The versions that timings depend on."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("diffusers", "ditplan"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            # run from a checkout that isn't installed
            continue
    if context.device.type == "cuda":
        versions["cuda"] = str(torch.version.cuda)
        versions["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
        properties = torch.cuda.get_device_properties(context.device)
        gpu = gpu_of(str(properties.uuid))
        if gpu is not None and gpu.driver is not None:
            versions["driver"] = gpu.driver
    return versions


def facts_of_rank(context: RankContext, ranks: Sequence[int], timed: bool) -> RankFacts:
    """What this rank finds, with the self-test's times if it is to be `timed` and is one of
    `ranks`, among which the collective goes. Every rank of the world calls it.
    """
    speed, collective_s = None, None
    if timed:
        group = _group_of(context, ranks)
        if context.rank in ranks:
            speed = _speed(context.device)
            collective_s = _collective_s(context, group) if group is not None else None
    return RankFacts(
        device=device_name(context),
        memory_bytes=_memory_bytes(context),
        software=software_versions(context),
        speed=speed,
        collective_s=collective_s,
    )


def _memory_bytes(context: RankContext) -> int:
    if context.device.type == "cuda":
        return int(torch.cuda.get_device_properties(context.device).total_memory)
    return max(1, psutil.virtual_memory().total // context.world_size)


def _group_of(context: RankContext, ranks: Sequence[int]) -> dist.ProcessGroup | None:
    if len(ranks) == 1:
        return None
    if len(ranks) == context.world_size:
        return dist.group.WORLD
    return context.groups.group(ranks)


def _speed(device: torch.device) -> RankSpeed:
    """The best of several rounds: what disturbs one of them isn't the machine."""
    number = torch.zeros(1, device=device)

    def launches() -> None:
        for _ in range(LAUNCHES):
            number.add_(1)

    launches()
    launch_s = min(_host_seconds(launches, device) for _ in range(ROUNDS)) / LAUNCHES
    block = _block(device)
    block()
    end, times = time.perf_counter() + BLOCK_TIME_S, [_seconds(block, device)]
    while time.perf_counter() < end:
        times.append(_seconds(block, device))
    return RankSpeed(launch_s=launch_s, block_s=min(times))


def _block(device: torch.device) -> Callable[[], object]:
    """A transformer's block: attention between two products, then a feed-forward part."""
    tokens, width = BLOCK[device.type]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32

    def filled(*shape: int) -> torch.Tensor:
        return torch.full(shape, 0.01, device=device, dtype=dtype)

    hidden = filled(1, tokens, width)
    to_qkv, to_out = filled(3 * width, width), filled(width, width)
    up, down = filled(4 * width, width), filled(width, 4 * width)

    def forward() -> torch.Tensor:
        qkv = functional.linear(hidden, to_qkv).unflatten(-1, (3, -1, HEAD_DIM))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value)
        middle = functional.linear(attended.transpose(1, 2).flatten(2), to_out)
        return functional.linear(functional.gelu(functional.linear(middle, up)), down)

    return forward


def _collective_s(context: RankContext, group: dist.ProcessGroup) -> float:
    numbers = torch.zeros(COLLECTIVE_BYTES[context.device.type] // 4, device=context.device)
    times = []
    for _ in range(ROUNDS + 1):
        dist.barrier(group)
        times.append(_seconds(lambda: dist.all_reduce(numbers, group=group), context.device))
    # the first one connects
    return min(times[1:])


def _host_seconds(call: Callable[[], object], device: torch.device) -> float:
    """Until the call returns, while the device may still be at it."""
    _synchronize(device)
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    _synchronize(device)
    start = time.perf_counter()
    call()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
