"""Which hosts of a file take part, and which of their devices, in DeepSpeed's words:
`host1:0,2@host2` are devices 0 and 2 of host1 and all of host2.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ditplan.profiles.bounds import MOST_SLOTS
from ditplan.profiles.errors import InputError, Setting
from ditplan.profiles.host import Host, quoted

SPEC = re.compile(r"(?P<name>\[[^\[\]]+\]|[^:,]+)(?::(?P<devices>[^:]*))?")
FORM = "write such as host1:0,2@host2"


@dataclass(frozen=True)
class ChosenHost:
    """A host whose `slots` are those that take part, and their numbers; None where all do."""

    host: Host
    devices: tuple[int, ...] | None = None


@dataclass(frozen=True)
class HostChoice:
    """The hosts that take part, in the order of their ranks, and the network interface by which
    they talk; None leaves it to their routes.
    """

    hosts: tuple[ChosenHost, ...]
    interface: str | None = None

    @classmethod
    def of(cls, hosts: Iterable[Host]) -> "HostChoice":
        """All devices of all of them."""
        return cls(tuple(map(ChosenHost, hosts)))

    def __str__(self) -> str:
        texts = [str(one.host) for one in self.hosts]
        return ", ".join(texts[:8]) + (f" and {len(texts) - 8} more" if len(texts) > 8 else "")


def choose_hosts(
    hosts: Sequence[Host], include: str | None = None, exclude: str | None = None
) -> tuple[ChosenHost, ...]:
    """The hosts that are included, or not excluded, in the order of `hosts`.

    Raises:
        InputError: both are given, a host or device that there isn't, one that is named twice, or
            nothing is left.
    """
    if include is not None and exclude is not None:
        raise InputError(Setting("include"), " and ", Setting("exclude"), " exclude each other")
    if include is not None:
        named = _named(hosts, include, "include")
        return tuple(
            ChosenHost(host, None)
            if (devices := named[host]) is None
            else ChosenHost(replace(host, slots=len(devices)), devices)
            for host in hosts
            if host in named
        )
    if exclude is None:
        return tuple(ChosenHost(host) for host in hosts)
    named = _named(hosts, exclude, "exclude")
    left = [_without(host, named[host]) if host in named else ChosenHost(host) for host in hosts]
    found = tuple(one for one in left if one is not None)
    if not found:
        raise InputError(Setting("exclude", exclude), ": leaves no device of any host")
    return found


def _without(host: Host, devices: tuple[int, ...] | None) -> ChosenHost | None:
    if devices is None:
        return None
    if host.slots is None:
        raise InputError(
            Setting("exclude"), f": how many devices {host.name} has isn't said; give it slots=N"
        )
    left = tuple(number for number in range(host.slots) if number not in devices)
    return ChosenHost(replace(host, slots=len(left)), left) if left else None


def _named(hosts: Sequence[Host], text: str, option: str) -> dict[Host, tuple[int, ...] | None]:
    """The hosts that a text names, with the devices, ascending, where it names some."""
    found: dict[Host, tuple[int, ...] | None] = {}
    for spec in text.split("@"):
        match = SPEC.fullmatch(spec)
        if match is None:
            raise InputError(Setting(option), f": {quoted(spec)} is no host with devices; {FORM}")
        name = match["name"].removeprefix("[").removesuffix("]").lower()
        same = [host for host in hosts if host.name.lower() == name]
        if not same:
            known = ", ".join(host.name for host in hosts[:8])
            raise InputError(
                Setting(option), f": there is no host {quoted(name)}; there are {known}"
            )
        if len(same) > 1:
            raise InputError(Setting(option), f": {len(same)} hosts have the name {quoted(name)}")
        if same[0] in found:
            raise InputError(
                Setting(option), f": {quoted(name)} is named twice; name it once, as in host1:0,2"
            )
        found[same[0]] = _devices(same[0], match["devices"], option)
    return found


def _devices(host: Host, text: str | None, option: str) -> tuple[int, ...] | None:
    if text is None:
        return None
    words, most = text.split(","), MOST_SLOTS if host.slots is None else host.slots
    for word in words:
        if not (re.fullmatch(r"[0-9]{1,4}", word) and int(word) < most):
            raise InputError(
                Setting(option),
                f": {host.name} has no device {quoted(word)}; its devices are 0 to {most - 1}",
            )
    devices = tuple(sorted(map(int, words)))
    if len({*devices}) < len(devices):
        raise InputError(Setting(option), f": a device of {host.name} is named twice")
    return devices
