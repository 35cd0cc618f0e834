"""hosts.txt: which machines take part, and with how many ranks."""

import re
from pathlib import Path

from pydantic import PositiveInt

from ditplan.profiles.errors import InputError
from ditplan.profiles.record import FrozenModel, read_text

FORMS = "`host`, `host slots=4`, `user@host` or `host:4`"
NAME = re.compile(
    r"(?:(?P<user>[A-Za-z0-9_][\w.-]*)@)?(?P<host>[A-Za-z0-9][A-Za-z0-9.-]*)(?::(?P<slots>\S*))?"
)


class HostLine(FrozenModel):
    """One host of the file; `slots` is None when the line doesn't give a number of ranks."""

    host: str
    user: str | None = None
    slots: PositiveInt | None = None


def load_hosts(path: Path | str) -> tuple[HostLine, ...]:
    """Reads a hosts file.

    Raises:
        InputError: no such file, or a line that can't be understood, with its number.
    """
    return parse_hosts(read_text(Path(path), f"hosts file, one host a line: {FORMS}"), str(path))


def parse_hosts(text: str, where: str) -> tuple[HostLine, ...]:
    """Parses the text of a hosts file: one host a line, `#` comments; ranks follow its order.

    Raises:
        InputError: a duplicate host, a bad slot count, an unknown key, or no host at all.
    """
    hosts: dict[str, HostLine] = {}
    first_seen: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        entry = _parse_line(words, f"{where}: line {number}")
        name = entry.host.lower()
        if name in hosts:
            raise InputError(
                f"{where}: line {number}: {entry.host} stands in line {first_seen[name]} "
                "already; name each host once and give its ranks as slots=N"
            )
        hosts[name], first_seen[name] = entry, number
    if not hosts:
        raise InputError(f"{where}: names no host; write one a line, as {FORMS}")
    return tuple(hosts.values())


def _parse_line(words: list[str], at: str) -> HostLine:
    match = NAME.fullmatch(words[0])
    if match is None:
        raise InputError(f"{at}: {words[0]!r} is not a host; write {FORMS}")
    slots = match["slots"]
    for word in words[1:]:
        key, equals, value = word.partition("=")
        if key != "slots" or not equals:
            raise InputError(f"{at}: unknown key {word!r}; the only one is slots=N")
        if slots is not None:
            raise InputError(f"{at}: the number of slots is given twice")
        slots = value
    return HostLine(
        host=match["host"],
        user=match["user"],
        slots=None if slots is None else _slot_count(slots, at),
    )


def _slot_count(text: str, at: str) -> int:
    if not (re.fullmatch(r"[0-9]{1,4}", text) and 1 <= int(text) <= 4096):
        raise InputError(f"{at}: slots is {text!r}; it must be a whole number from 1 to 4096")
    return int(text)
