"""How many GPUs ranks of this machine may have, found without torch, which takes long to import."""

from collections.abc import Mapping
from importlib.machinery import SourceFileLoader
from importlib.util import find_spec, module_from_spec, spec_from_loader
from pathlib import Path

from ditplan.runtime.ranks.gpu_inventory import gpu_inventory
from ditplan.runtime.ranks.left_set import VISIBLE_DEVICES, visible_gpus


def gpus_here(environment: Mapping[str, str]) -> int:
    """The GPUs that torch can use in a process of this environment, which is this one's.

    NVML counts them. What it can't say torch is asked: where it doesn't answer, and where parts of
    GPUs (MIG) are named.
    """
    if is_for_cpus():
        return 0
    inventory = gpu_inventory()
    if inventory.fault or "MIG-" in environment.get(VISIBLE_DEVICES, ""):
        import torch

        return torch.cuda.device_count() if torch.cuda.is_available() else 0
    return len(visible_gpus(inventory.gpus, environment))


def is_for_cpus() -> bool:
    """Whether the torch that is installed was built without GPUs, by its `torch/version.py`."""
    package = find_spec("torch")
    if package is None or not package.submodule_search_locations:
        return True
    path = Path(package.submodule_search_locations[0], "version.py")
    spec = spec_from_loader("torch_version", SourceFileLoader("torch_version", str(path)))
    assert spec is not None
    assert spec.loader is not None
    version = module_from_spec(spec)
    try:
        spec.loader.exec_module(version)
    except OSError:
        return False
    return not (getattr(version, "cuda", None) or getattr(version, "hip", None))
