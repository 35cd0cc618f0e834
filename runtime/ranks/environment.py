"""The environment of this process, and that of ranks. No other file reads the environment."""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

NO_MULTICAST = ("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")
"""Peers write to one rank at a time. Setting multicast up fails on GPUs that lack it, and can wait
for ever where ranks get to it at different times."""

TOPOLOGY_FILE, TOPOLOGY_RANK = "NCCL_TOPO_DUMP_FILE", "NCCL_TOPO_DUMP_FILE_RANK"

CARRIED = ("NCCL_", "TORCH_NCCL_", "TORCHINDUCTOR_")
"""What begins so is the same for all ranks, on whatever host: what was set where the command runs.
All else is each host's own, so that none learns another's secrets."""


def environment() -> Mapping[str, str]:
    """The environment of this process."""
    return dict(os.environ)


def set_where_unset(name: str, value: str) -> None:
    """Sets a variable of this process that nobody has set."""
    os.environ.setdefault(name, value)


def cache_folder() -> Path:
    """Where this user's programs keep what can be made anew: ditplan's folder there."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ditplan"


@contextlib.contextmanager
def nccl_writes_topology(path: str, rank: int) -> Iterator[None]:
    """Has NCCL write what it finds of this host's topology to a file, when it makes a communicator
    in which this process has this rank. Not where somebody has it written elsewhere.
    """
    if TOPOLOGY_FILE in os.environ:
        yield
        return
    with variable_set(TOPOLOGY_FILE, path), variable_set(TOPOLOGY_RANK, str(rank)):
        yield


@contextlib.contextmanager
def variable_set(name: str, value: str) -> Iterator[None]:
    """A variable of this process for as long as the context lasts, then what it was before."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def carried(environment: Mapping[str, str]) -> dict[str, str]:
    """What ranks of other hosts are given of an environment."""
    return {name: value for name, value in environment.items() if name.startswith(CARRIED)}


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def search_path() -> list[str]:
    """This process's own, so that a task is found by ranks if it was found here."""
    return [path or os.getcwd() for path in sys.path]


def rank_settings(path: Sequence[str], interface: str, *, on_gpus: bool) -> dict[str, str]:
    """What ranks of a host are given, whatever its own environment says.

    They find modules by `path`, and take connections on `interface` alone. Left to itself, NCCL
    takes another one, and gloo that of the host's name, which often leads to no usable address.
    CPU ranks see no GPU: they are forked from a process that has counted them, after which torch
    can't use CUDA, and compiling for a CPU asks CUDA all the same.
    """
    unseen = {} if on_gpus else {"CUDA_VISIBLE_DEVICES": ""}
    return unseen | {
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONUNBUFFERED": "1",
        "GLOO_SOCKET_IFNAME": interface,
        "NCCL_SOCKET_IFNAME": f"={interface}",
    }


def rank_fallbacks(ranks: int, cores: int) -> dict[str, str]:
    """What `ranks` ranks of a host with so many cores are given where nobody has set it."""
    threads = str(max(1, cores // ranks))
    return {
        "OMP_NUM_THREADS": threads,
        "TORCHINDUCTOR_COMPILE_THREADS": threads,
        NO_MULTICAST[0]: NO_MULTICAST[1],
    }


def rank_environment(
    environment: Mapping[str, str],
    path: Sequence[str],
    ranks: int,
    interface: str,
    *,
    on_gpus: bool,
) -> dict[str, str]:
    """What `ranks` ranks of this host are started with, whose own environment is given."""
    settings = rank_settings(path, interface, on_gpus=on_gpus)
    return rank_fallbacks(ranks, cores()) | dict(environment) | settings
