"""What is asked of a host before ranks are started on it. Imports neither torch nor diffusers."""

import contextlib
import hashlib
import importlib.metadata
import json
import math
import operator
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ditplan.runtime.ranks.gpu_inventory import gpu_inventory

PACKAGE = Path(__file__).parents[2]
PACKAGES = ("torch", "diffusers", "transformers", "flash-attn")
NCCL_PACKAGES = ("nvidia-nccl-cu13", "nvidia-nccl-cu12", "nvidia-nccl-cu11")
SOURCES = (".py", ".toml", ".json")

PRODUCT_NUMBERS = 10_000
PRODUCT_S = 0.05

PROBE_BYTES = 1 << 20


@dataclass(frozen=True)
class GpuProduct:
    """FLOP/s of a GPU for a small product in bfloat16, and its processors' clock just then and at
    most, in MHz; None where NVML doesn't say.
    """

    uuid: str
    flops_per_s: float
    clock_mhz: int | None
    clock_max_mhz: int | None


def within(limit_s: float, probes: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """What probes say, all asked at once; those that don't answer in time are left out."""
    found: dict[str, Any] = {}

    def ask(name: str) -> None:
        answer = probes[name]()
        if not is_over.is_set():
            found[name] = answer

    is_over = threading.Event()
    # as daemons, since who waits for a name server can't be ended
    threads = [threading.Thread(target=ask, args=(name,), daemon=True) for name in probes]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + limit_s
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    is_over.set()
    return dict(found)


def own_code() -> dict[str, str]:
    """What the command and its ranks must have in common, since they read what the other writes."""
    return {
        "python": ".".join(platform.python_version_tuple()[:2]),
        "ditplan": sources_digest(),
    }


def versions() -> dict[str, str | None]:
    """The versions of what ranks import, from what pip noted; None for what isn't installed."""
    found: dict[str, str | None] = {**own_code()}
    found |= {name: _version(name) for name in PACKAGES}
    found["nccl"] = next(filter(None, map(_version, NCCL_PACKAGES)), None)
    return found


def _version(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def sources_digest(folder: Path = PACKAGE) -> str:
    """The first 12 digits of a digest of our own sources and data, the same wherever they lie."""
    files = sorted(
        Path(place, name).relative_to(folder)
        for place, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.endswith(SOURCES)
    )
    digest = hashlib.sha256()
    for file in files:
        content = (folder / file).read_bytes()
        digest.update(f"{file.as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:12]


def product_rate() -> float:
    """Multiplications/s of a processor, by its own time: other processes beside it don't count.

    What else this process does at once disturbs it.
    """
    a = [math.sqrt(number) for number in range(PRODUCT_NUMBERS)]
    best, end = math.inf, time.monotonic() + PRODUCT_S
    while best == math.inf or time.monotonic() < end:
        start = time.thread_time()
        sum(map(operator.mul, a, a))
        best = min(best, time.thread_time() - start)
    return PRODUCT_NUMBERS / max(best, 1e-9)


def gpu_products(limit_s: float) -> tuple[GpuProduct, ...] | None:
    """How fast the GPUs that CUDA sees multiply; None where that can't be known, or not in time:
    torch is imported first, which alone may take some seconds.
    """
    if not gpu_inventory().gpus:
        return ()
    words = [sys.executable, "-P", "-m", "ditplan.runtime.ranks.gpu_product"]
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit_s, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return tuple(GpuProduct(**one) for one in json.loads(done.stdout))


def disk() -> dict[str, Any]:
    """The folder where logs go, its free bytes, and why nothing can be written there.

    `fault` is empty where it can; there is no folder where none for temporary files takes anything.
    """
    try:
        folder = tempfile.gettempdir()
    except FileNotFoundError as error:
        return {"folder": None, "free_bytes": None, "fault": error.strerror or str(error)}
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
        free, fault = shutil.disk_usage(folder).free, ""
    except OSError as error:
        free, fault = None, error.strerror or str(error)
    return {"folder": folder, "free_bytes": free, "fault": fault}


def namespace() -> str:
    """What hosts have in common that are one machine and network namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/net')}"
