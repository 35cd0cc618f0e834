"""What preflight found, for people and as JSON."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from ditplan.runtime.ranks.host_differences import gib, names_of, tera
from ditplan.runtime.ranks.host_report import HostFacts
from ditplan.runtime.ranks.host_view import HostView

UNKNOWN = "unknown"
MOST_VALUES = 8
"""Of one fact, that are shown."""

PACKAGES = {
    "ditplan": "ditplan",
    "torch": "torch",
    "NCCL": "nccl",
    "diffusers": "diffusers",
    "transformers": "transformers",
    "flash-attn": "flash-attn",
}
OF_SEVERAL = "ranks listen at"
TEXTS = ("reached by", "Python", *PACKAGES, "GPUs", "driver", OF_SEVERAL, "left set")
OF_GPUS = ("GPU memory free", "GPU product", "GPU clock")
NUMBERS: Mapping[str, Callable[[float], str]] = {
    "GPU memory free": lambda number: gib(int(number)),
    "GPU product": tera,
    "GPU clock": "{:.0f} MHz".format,
    "memory free": lambda number: gib(int(number)),
    "room for logs": lambda number: gib(int(number)),
    "cores": "{:.0f}".format,
    "products/s": lambda number: f"{number / 1e6:.3g} million",
    "clock ahead": "{:.3f} s".format,
}
"""What is a number, and how it is shown; of GPUs, that of the host's least one."""


def host_table(views: Sequence[HostView]) -> Table:
    """A row for each fact and each value that hosts have of it, with those hosts; of numbers, the
    least and the largest.
    """
    table = Table(box=SIMPLE_HEAD, padding=0)
    for heading in ("fact", "value", "hosts"):
        table.add_column(heading)
    known = [(view, view.facts) for view in views if view.facts is not None]
    for fact in TEXTS:
        if fact == OF_SEVERAL and len(views) == 1:
            continue
        texts = {view.name: _text(fact, facts, view) for view, facts in known}
        _add_texts(table, fact, texts, len(views))
    have_gpus = any(facts.gpus != () for _, facts in known)
    for fact in NUMBERS:
        if fact not in OF_GPUS or have_gpus:
            numbers = {view.name: _number(fact, facts, view) for view, facts in known}
            _add_numbers(table, fact, numbers, len(views))
    if silent := [view.name for view in views if view.facts is None]:
        table.add_row("no answer", "", escape(names_of(silent)))
    return table


def _text(fact: str, facts: HostFacts, view: HostView) -> str:
    match fact:
        case "reached by":
            return view.launcher or UNKNOWN
        case "Python":
            return facts.python
        case "GPUs":
            return _gpus(facts)
        case "driver":
            return facts.driver or ("none" if facts.gpus_in_all == 0 else UNKNOWN)
        case "ranks listen at":
            return f"{view.address.address} ({view.address.name})" if view.address else UNKNOWN
        case "left set":
            settings = facts.environment.items()
            return ", ".join(f"{name}={value}" for name, value in settings) or "nothing"
    if facts.versions is None:
        return UNKNOWN
    return facts.versions.get(PACKAGES[fact]) or "not installed"


def _gpus(facts: HostFacts) -> str:
    if facts.gpus is None:
        return UNKNOWN
    names = [gpu.name or "of unknown name" for gpu in facts.gpus]
    counts = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    return counts or (f"none ({facts.gpu_fault})" if facts.gpu_fault else "none")


def _number(fact: str, facts: HostFacts, view: HostView) -> float | None:
    match fact:
        case "GPU memory free":
            free = [gpu.free_bytes for gpu in facts.gpus or ()]
            return min((one for one in free if one is not None), default=None)
        case "GPU product":
            return min((one.flops_per_s for one in facts.gpu_products or ()), default=None)
        case "GPU clock":
            clocks = [one.clock_mhz for one in facts.gpu_products or ()]
            return min((one for one in clocks if one is not None), default=None)
        case "memory free":
            return facts.memory_free_bytes
        case "room for logs":
            return facts.disk_free_bytes
        case "cores":
            return facts.cores
        case "products/s":
            return facts.product_rate
    return None if view.clock is None else view.clock.ahead_s


def _add_texts(table: Table, fact: str, texts: Mapping[str, str], of: int) -> None:
    hosts: dict[str, list[str]] = {}
    for name, text in texts.items():
        hosts.setdefault(text, []).append(name)
    for place, (text, names) in enumerate(list(hosts.items())[:MOST_VALUES]):
        table.add_row("" if place else fact, escape(text), escape(_hosts(names, of)))
    if len(hosts) > MOST_VALUES:
        table.add_row("", f"and {len(hosts) - MOST_VALUES} more values", "")


def _add_numbers(table: Table, fact: str, numbers: Mapping[str, float | None], of: int) -> None:
    known = {name: number for name, number in numbers.items() if number is not None}
    if known:
        names = sorted(known, key=lambda name: known[name])
        least, most = (NUMBERS[fact](known[names[place]]) for place in (0, -1))
        if least == most:
            table.add_row(fact, least, escape(_hosts(list(known), of)))
        else:
            table.add_row(fact, f"{least} to {most}", escape(f"{names[0]} to {names[-1]}"))
    if unknown := [name for name in numbers if name not in known]:
        shown = escape(_hosts(unknown, of))
        table.add_row("" if known else fact, UNKNOWN, shown)


def _hosts(names: Sequence[str], of: int) -> str:
    return "all" if len(names) == of > 1 else names_of(names)


def hosts_json(views: Sequence[HostView]) -> list[dict[str, Any]]:
    """The hosts as `preflight --json` prints them."""
    return [
        {
            "host": view.name,
            "slots": view.chosen.host.slots,
            "devices": view.chosen.devices,
            "launcher": view.launcher,
            "fault": view.fault,
            "clock": None if view.clock is None else asdict(view.clock),
            "address": None if view.address is None else asdict(view.address),
            "unreached": None if view.unreached is None else dict(view.unreached),
            "facts": None if view.facts is None else asdict(view.facts),
        }
        for view in views
    ]
