"""The machine that a benchmark runs on."""

import importlib.metadata
import os
import platform
from pathlib import Path


def cpu_name() -> str:
    """What the processor calls itself."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def described(*packages: str) -> str:
    """Such as `2 cores of an AMD EPYC; Python 3.11.7, pydantic 2.14.3`."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    return f"{os.cpu_count()} cores of an {cpu_name()}; " + ", ".join(
        (f"Python {platform.python_version()}", *versions)
    )
