"""Compiled code that is kept from one process of a plan to the next, by torch's cache artifacts.

Torch finds code again by the graph it was compiled from, in a folder for temporary files. What a
plan needs of it lies in a file of its own in the user's cache folder as well, where it outlives
that one, and can be brought to another machine.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch._dynamo.utils import counters

from ditplan.profiles.errors import InputError, PlanWarning
from ditplan.profiles.plan import ExecutionPlan
from ditplan.profiles.record import replacing
from ditplan.runtime.groups import RankContext
from ditplan.runtime.ranks.devices import device_name
from ditplan.runtime.ranks.environment import cache_folder
from ditplan.runtime.ranks.self_test import software_versions

MOST_FILES = 64
"""So many are kept, those that were used last."""

MISSES = (("inductor", "fxgraph_cache_miss"), ("aot_autograd", "autograd_cache_miss"))


@contextmanager
def kept_code(plan: ExecutionPlan, context: RankContext) -> Iterator[None]:
    """While entered, what this rank compiles for the plan is taken from what an earlier process
    left, where there is any; what was compiled in spite of that is left to later ones.

    A file that is damaged, another's, or can't be written is warned of; nothing else comes of it.
    """
    if "compile" not in plan.configuration.mode:
        yield
        return
    key = key_of(plan, context)
    path = cache_folder() / "compiled" / f"{key}.code"
    is_loaded, before = _load(path, key), _misses()
    yield
    if not is_loaded or _misses() > before:
        _save(path, key)


def key_of(plan: ExecutionPlan, context: RankContext) -> str:
    """A digest of all that a rank's code for a plan may depend on; of numbers of steps it doesn't.

    NCCL's version and the driver's are left out: code is compiled for neither.
    """
    software = software_versions(context)
    parts = {
        "software": {
            name: version for name, version in software.items() if name not in {"nccl", "driver"}
        },
        "device": device_name(context),
        "backend": plan.backend,
        "model": [one.config_hash for one in plan.model.transformers],
        "configuration": plan.configuration.key,
        "workload": plan.workload.model_dump(mode="json", exclude={"steps"}),
        "text_sizes": plan.text_sizes,
        "rank": context.rank,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _misses() -> int:
    """How often torch found no code for a graph so far."""
    return sum(counters[group][name] for group, name in MISSES)


def _load(path: Path, key: str) -> bool:
    """Gives torch what a file holds; says whether it did."""
    try:
        if not _is_ours(path):
            _warn(path, "isn't this user's alone, so it isn't used")
            return False
        head, _, code = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return False
    except OSError as error:
        _warn(path, f"can't be read ({error.strerror})")
        return False
    # torch unpickles it: what it says of itself is checked first
    if head != _head(key, code):
        _warn(path, "is damaged, so it isn't used")
        return False
    if torch.compiler.load_cache_artifacts(code) is None:
        _warn(path, "holds what this torch can't read, so it isn't used")
        return False
    with suppress(OSError):
        os.utime(path)
    return True


def _save(path: Path, key: str) -> None:
    """Writes what torch has compiled in this process, whole or not at all."""
    made = torch.compiler.save_cache_artifacts()
    if made is None:
        return
    code = made[0]
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(_head(key, code) + b"\n" + code)
        _sweep(path.parent)
    except (InputError, OSError) as error:
        _warn(path, f"compiled code can't be kept there ({error})")


def _head(key: str, code: bytes) -> bytes:
    return f"ditplan code 1 {key} {hashlib.sha256(code).hexdigest()}".encode()


def _is_ours(path: Path) -> bool:
    """Whether nobody else may write a file.

    Raises:
        OSError: it isn't there, or can't be looked at.
    """
    folder, file = path.parent.stat(), path.stat()
    return {folder.st_uid, file.st_uid} == {os.getuid()} and not folder.st_mode & 0o022


def _sweep(folder: Path) -> None:
    """Removes the files that were used least lately beyond `MOST_FILES`."""
    by_use = sorted(folder.glob("*.code"), key=lambda path: path.stat().st_mtime)
    for path in by_use[:-MOST_FILES]:
        path.unlink(missing_ok=True)


def _warn(path: Path, what: str) -> None:
    warnings.warn(f"{path}: {what}; the plan is compiled anew", PlanWarning, stacklevel=3)
