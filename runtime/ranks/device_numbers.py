"""What a host calls the GPUs that a process may see: the numbers that they have for all others."""

from collections.abc import Mapping

import torch

from ditplan.runtime.ranks.gpu_inventory import gpu_of

VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible_numbers(environment: Mapping[str, str], count: int) -> tuple[int | None, ...]:
    """The host's numbers of a process' `count` GPUs, in its order; None for one that only a UUID
    names which NVML doesn't know.
    """
    said = environment.get(VISIBLE)
    if said is None:
        return tuple(range(count))
    words = [word.strip() for word in said.split(",")][:count]
    return tuple(int(word) if word.isdecimal() else _number_of(word) for word in words)


def number_of_gpu(device: torch.device, environment: Mapping[str, str]) -> int | None:
    """The host's number of a GPU of this process; None of a CPU, or where it isn't known."""
    if device.type != "cuda":
        return None
    return visible_numbers(environment, torch.cuda.device_count())[device.index]


def _number_of(uuid: str) -> int | None:
    gpu = gpu_of(uuid)
    return None if gpu is None else gpu.index
