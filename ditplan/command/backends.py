"""Backends as `list backends` shows them, and what one that runs nothing says for `run`."""

from pathlib import Path
from typing import Any

from ditplan.command.terminal import Terminal
from ditplan.profiles.backends import BrokenBackend, LoadedBackend, find_backend, installed
from ditplan.profiles.capabilities import Capabilities, Running
from ditplan.profiles.files import path_text
from ditplan.profiles.plan import ExecutionPlan

RUNS: dict[Running, str] = {
    "in ranks": "runs plans in ranks",
    "elsewhere": "is priced and exported; runs elsewhere",
    "never": "says what would run",
}
CLAIMS = {
    "balances": "unequal shares",
    "folds_skips": "folded schedule",
    "shards_weights": "weights in pieces",
    "caches_steps": "step caches",
    "splits_vae": "VAE over several ranks",
}


def show_backends(terminal: Terminal) -> None:
    """Shows what each backend can do and where it comes from; broken ones with what is wrong."""
    found = installed().load_all()
    usable = [one for one in found if isinstance(one, LoadedBackend)]
    broken = [one for one in found if isinstance(one, BrokenBackend)]
    terminal.show("\n".join(map(backend_text, usable)))
    for one in broken:
        terminal.show(f"broken: {one.why}")
    terminal.finish(
        {
            "names": [one.name for one in usable],
            "backends": [backend_json(one) for one in usable],
            "broken": [{"name": one.name, "origin": one.origin, "why": one.why} for one in broken],
        }
    )


def backend_text(backend: LoadedBackend) -> str:
    """What a backend can do, in a few lines; the first begins with its name."""
    can = backend.capabilities
    rows = [
        f"{backend.name} ({backend.origin}): {RUNS[can.runs]}",
        f"  axes: {', '.join(axes_of(can)) or 'none'}",
        f"  modes: {', '.join(can.modes)}; on CPUs: {', '.join(can.cpu_modes) or 'none'}",
        f"  families: {_names(can.families)}",
    ]
    if can.staged_families is not None:
        rows.append(f"  with pipefusion: {_names(can.staged_families)}")
    if can.split_families is not None:
        rows.append(f"  with ring and ulysses: {_names(can.split_families)}")
    if also := [text for claim, text in CLAIMS.items() if getattr(can, claim)]:
        rows.append(f"  also: {', '.join(also)}")
    return "\n".join(rows)


def axes_of(can: Capabilities) -> list[str]:
    """Its axes, with a word at those that aren't exact."""
    return [f"{axis} (approximate)" if axis in can.approximate_axes else axis for axis in can.axes]


def backend_json(backend: LoadedBackend) -> dict[str, Any]:
    """The same as fields."""
    return {"origin": backend.origin} | backend.capabilities.model_dump(mode="json")


def shown_instead(plan: ExecutionPlan, file: Path) -> str | None:
    """What would run, of a plan whose backend runs nothing; None of all others.

    Raises:
        InputError: there is no such backend here.
    """
    backend = find_backend(plan.backend)
    if backend.capabilities.runs != "never":
        return None
    return backend.plugin.emit(plan, path_text(file)).text.rstrip("\n")


def _names(names: tuple[str, ...] | None) -> str:
    return "all" if names is None else ", ".join(names)
