"""One machine that takes part: its name, how to reach it, and how many ranks it has room for."""

import ipaddress
import re
from dataclasses import dataclass, field

from ditplan.profiles.bounds import MOST_RANKS, MOST_SLOTS
from ditplan.profiles.errors import InputError, Part, one_line

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")
USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
SCOPE = re.compile(r"[A-Za-z0-9._-]+")
MOST_PORT = 65_535

HostKey = tuple[str, int | None]


@dataclass(frozen=True)
class Host:
    """A host by its name or address (IPv6 without brackets), and the user and port of its ssh.

    `slots` is None where nobody says how many ranks there is room for. No part can be taken for an
    option or by a shell for anything but a word.
    """

    name: str
    user: str | None = None
    port: int | None = None
    slots: int | None = None

    def __post_init__(self) -> None:
        if not (NAME.fullmatch(self.name) or is_ipv6(self.name)):
            raise InputError(f"{quoted(self.name)} is not a host's name or address")
        if self.user is not None and not USER.fullmatch(self.user):
            raise InputError(
                f"{quoted(self.user)} is not a user's name; it has letters, digits, ., _ and -"
            )
        _check_number("port", self.port, MOST_PORT)
        _check_number("slots", self.slots, MOST_SLOTS)

    @property
    def key(self) -> HostKey:
        """What two hosts have in common that are the same one."""
        name = self.name.lower()
        return (str(ipaddress.IPv6Address(name)) if ":" in name else name), self.port

    def __str__(self) -> str:
        name = f"[{self.name}]" if ":" in self.name else self.name
        word = f"{self.user}@{name}" if self.user else name
        if self.port is not None:
            word = f"ssh://{word}:{self.port}"
        return word if self.slots is None else f"{word} slots={self.slots}"


@dataclass
class HostTable:
    """The hosts of one file or list so far, in its order, and where each was first seen."""

    where: str
    hosts: dict[HostKey, Host] = field(default_factory=dict)
    seen: dict[HostKey, str] = field(default_factory=dict)
    slots: int = 0

    def add(self, host: Host, place: str, *remedy: Part) -> None:
        """Adds a host that stands in a place such as `line 3`.

        Raises:
            InputError: it stands there already, with the remedy; or there are too many slots.
        """
        if (before := self.seen.get(host.key)) is not None:
            raise InputError(
                f"{self.where}: {place}: {host.name} stands in {before} already; ", *remedy
            )
        self.seen[host.key] = place
        self.put(host)

    def put(self, host: Host) -> None:
        """Adds a host, or puts one that has other slots in its place.

        Raises:
            InputError: there are more slots than any cluster has.
        """
        before = self.hosts.get(host.key)
        self.slots += (host.slots or 1) - ((before.slots or 1) if before else 0)
        if self.slots > MOST_RANKS:
            raise InputError(
                f"{self.where}: names {self.slots} slots; {MOST_RANKS} are the most there can be"
            )
        self.hosts[host.key] = host

    def finished(self, forms: str) -> tuple[Host, ...]:
        """All hosts.

        Raises:
            InputError: there are none; says in which forms to write one.
        """
        if not self.hosts:
            raise InputError(f"{self.where}: names no host; write one a line, as {forms}")
        return tuple(self.hosts.values())


def is_ipv6(text: str) -> bool:
    """Whether a text is an IPv6 address, perhaps with a scope as in `fe80::1%eth0`."""
    address, percent, scope = text.partition("%")
    if percent and not SCOPE.fullmatch(scope):
        return False
    try:
        ipaddress.IPv6Address(address)
    except ValueError:
        return False
    return True


def whole_number(what: str, text: str, most: int) -> int:
    """A number such as of slots, from 1.

    Raises:
        InputError: it is none, or larger.
    """
    if not (re.fullmatch(r"[0-9]{1,5}", text) and 1 <= int(text) <= most):
        raise InputError(f"{what} is {quoted(text)}; it must be a whole number from 1 to {most}")
    return int(text)


def quoted(word: str) -> str:
    """A word as messages show it."""
    return one_line(repr(word), 60)


def _check_number(what: str, number: int | None, most: int) -> None:
    if number is not None and not (type(number) is int and 1 <= number <= most):
        raise InputError(f"{what} is {number!r}; it must be a whole number from 1 to {most}")
