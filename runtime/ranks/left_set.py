"""What is left set in an environment and changes what ranks do. Imports nothing large."""

from collections.abc import Mapping, Sequence

from ditplan.runtime.ranks.gpu_inventory import Gpu

PREFIXES = ("NCCL_", "GLOO_")
VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"

SLOWING = {
    "NCCL_P2P_DISABLE": "GPUs talk through host memory instead of NVLink or PCIe peer access",
    "NCCL_SHM_DISABLE": "ranks of one host talk through sockets",
    "NCCL_IB_DISABLE": "hosts talk over Ethernet, even where there is InfiniBand",
}
"""Switches of NCCL's that are easily left behind after a search for a fault."""

SAYING = ("NCCL_DEBUG", "NCCL_VERSION")
"""How what changes nothing of what NCCL does begins: what it says, and what images are labelled
with.
"""

OWN = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""Ranks get others than those that are set."""


def left_set(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of an environment that NCCL, gloo or CUDA go by, and nothing else of it."""
    return {
        name: environment[name]
        for name in sorted(environment)
        if (name.startswith(PREFIXES) and not name.startswith(SAYING)) or name == VISIBLE_DEVICES
    }


def is_set(name: str, environment: Mapping[str, str]) -> bool:
    """Whether a switch such as NCCL_P2P_DISABLE is on."""
    return environment.get(name, "0").strip() not in {"", "0"}


def slowing(environment: Mapping[str, str]) -> dict[str, str]:
    """The switches that are on and slow NCCL down, such as `NCCL_IB_DISABLE=1`, with the effect."""
    return {
        f"{name}={environment[name]}": effect
        for name, effect in SLOWING.items()
        if is_set(name, environment)
    }


def environment_warnings(environment: Mapping[str, str]) -> list[str]:
    """Settings that slow NCCL down and are easily left behind."""
    return [
        f"{setting} is set in the environment: {effect}; unset it"
        for setting, effect in slowing(environment).items()
    ]


def visible_gpus(gpus: Sequence[Gpu], environment: Mapping[str, str]) -> tuple[Gpu, ...]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves, in its order; all without it.

    As CUDA reads it: numbers or the beginnings of UUIDs, and what follows the first wrong one
    doesn't count. Numbers are taken as those of the inventory, so which GPU is meant may differ
    where CUDA numbers unlike GPUs by speed; how many there are doesn't.
    """
    text = environment.get(VISIBLE_DEVICES)
    if text is None:
        return tuple(gpus)
    found: list[Gpu] = []
    for word in map(str.strip, text.split(",")):
        if word.isdecimal():
            named = [gpus[int(word)]] if int(word) < len(gpus) else []
        else:
            named = [gpu for gpu in gpus if word and gpu.uuid.startswith(word)]
        if len(named) != 1:
            break
        found += named
    # a device that is named twice leaves none
    return tuple(found) if len({gpu.uuid for gpu in found}) == len(found) else ()
