"""hosts.txt: which machines take part, and with how many ranks."""

import re
from pathlib import Path

from ditplan.profiles.bounds import MOST_RANKS, MOST_SLOTS, Slots
from ditplan.profiles.errors import InputError, one_line
from ditplan.profiles.files import path_text, read_text
from ditplan.profiles.record import FrozenModel

FORMS = "`host`, `host slots=4`, `user@host` or `host:4`"
NAME = re.compile(
    r"(?:(?P<user>[A-Za-z0-9_][\w.-]*)@)?(?P<host>[A-Za-z0-9][A-Za-z0-9.-]*)(?::(?P<slots>\S*))?"
)


class HostLine(FrozenModel):
    """One host of the file; `slots` is None when the line doesn't give a number of ranks."""

    host: str
    user: str | None = None
    slots: Slots | None = None


def load_hosts(path: Path | str) -> tuple[HostLine, ...]:
    """Reads a hosts file.

    Raises:
        InputError: no such file, or a line that can't be understood, with its number.
    """
    text = read_text(Path(path), f"a hosts file, one host a line: {FORMS}")
    return parse_hosts(text, path_text(path))


def parse_hosts(text: str, where: str) -> tuple[HostLine, ...]:
    """Parses the text of a hosts file: one host a line, `#` comments; ranks follow its order.

    Raises:
        InputError: a duplicate host, a bad slot count, an unknown key, no host at all, or more
            slots than any cluster has.
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
    slots = sum(host.slots or 1 for host in hosts.values())
    if slots > MOST_RANKS:
        raise InputError(f"{where}: names {slots} slots; {MOST_RANKS} are the most there can be")
    return tuple(hosts.values())


def _parse_line(words: list[str], at: str) -> HostLine:
    match = NAME.fullmatch(words[0])
    if match is None:
        raise InputError(f"{at}: {_word(words[0])} is not a host; write {FORMS}")
    slots = match["slots"]
    for word in words[1:]:
        key, equals, value = word.partition("=")
        if key != "slots" or not equals:
            raise InputError(f"{at}: unknown key {_word(word)}; the only one is slots=N")
        if slots is not None:
            raise InputError(f"{at}: the number of slots is given twice")
        slots = value
    return HostLine(
        host=match["host"],
        user=match["user"],
        slots=None if slots is None else _slot_count(slots, at),
    )


def _slot_count(text: str, at: str) -> int:
    if not (re.fullmatch(r"[0-9]{1,4}", text) and 1 <= int(text) <= MOST_SLOTS):
        raise InputError(
            f"{at}: slots is {_word(text)}; it must be a whole number from 1 to {MOST_SLOTS}"
        )
    return int(text)


def _word(word: str) -> str:
    return one_line(repr(word), 60)
