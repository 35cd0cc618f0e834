"""Hosts files and lists of hosts: which machines take part, and with how many ranks."""

import os
import re
from pathlib import Path
from typing import NamedTuple

from ditplan.profiles.bounds import MOST_SLOTS
from ditplan.profiles.errors import InputError, Setting
from ditplan.profiles.files import path_text, read_text
from ditplan.profiles.host import MOST_PORT, Host, HostTable, quoted, whole_number
from ditplan.profiles.hosts_formats import FORMATS, HostsFormat
from ditplan.profiles.node_list import expand, split_list

FORMS = "`host`, `host slots=4`, `host:4`, `user@host`, `ssh://user@host:22` or `n[01-04] slots=4`"
WORD = re.compile(
    r"(?:(?P<user>[^@]*)@)?(?P<host>\[[^\[\]]*:[^\[\]]*\]|[^@:]*)(?::(?P<number>[^:/]*))?"
)
URL = re.compile(
    r"ssh://(?:(?P<user>[^@/]*)@)?(?P<host>\[[^\[\]]*:[^\[\]]*\]|[^@:/]*)(?::(?P<number>[^:/]*))?/?"
)


class _Entry(NamedTuple):
    """The hosts of a word, and the slots that it gives each of them, as written."""

    hosts: list[Host]
    slots: str | None


def load_hosts(hosts: Path | str, form: HostsFormat = "ditplan") -> tuple[Host, ...]:
    """Reads a hosts file, or a list of hosts in place of its name, such as `n[1-4]:8,m1 slots=4`.

    A file goes first; a list is recognized by a comma, bracket, @, colon or = in it.

    Raises:
        InputError: no such file, or a line or host that can't be understood, with its number.
    """
    text = str(hosts)
    # a long list is no path that can be asked for
    if _looks_like_list(text) and not os.path.exists(hosts):
        if form != "ditplan":
            wrong = Setting("hosts_format", form)
            raise InputError(f"{quoted(text)} is a list of hosts, no file; leave out ", wrong)
        return parse_host_list(text, "hosts")
    expected = f"a hosts file, one host a line: {FORMS}"
    return parse_hosts(read_text(Path(hosts), expected), path_text(hosts), form)


def parse_hosts(text: str, where: str, form: HostsFormat = "ditplan") -> tuple[Host, ...]:
    """Parses the text of a hosts file; ranks follow its order.

    `ditplan` is one host a line, or several that are alike in brackets, with `#` comments. The
    other formats are read as the tools of their names read them. A line that isn't ditplan's and
    that several of those tools would read is refused with what each makes of it.

    Raises:
        InputError: a duplicate host, a bad slot count, an unknown key, no host at all, or more
            slots than any cluster has.
    """
    lines = list(enumerate(text.split("\n"), start=1))
    if form != "ditplan":
        return FORMATS[form].parse(lines, where)
    table = HostTable(where)
    for number, line in lines:
        words = _words(line)
        if not words:
            continue
        try:
            found = _parse_line(words)
        except InputError as error:
            at = f"{where}: line {number}"
            raise InputError(f"{at}: {error}", *_other_readings(line)) from None
        for host in found:
            table.add(
                host,
                f"line {number}",
                "name each host once and give its ranks as slots=N (Open MPI and PBS add such "
                "lines up, MPICH deals ranks out in their order: ",
                Setting("hosts_format"),
                ")",
            )
    return table.finished(FORMS)


def parse_host_list(text: str, where: str) -> tuple[Host, ...]:
    """Parses hosts between commas, each written as a line of a hosts file.

    Raises:
        InputError: as `parse_hosts`; names the host by its place in the list.
    """
    table = HostTable(where)
    try:
        words = split_list(text)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    for number, word in enumerate(words, start=1):
        try:
            found = _parse_line(re.split(r"[ \t]+", word.strip(" \t")))
        except InputError as error:
            raise InputError(f"{where}: host {number}: {error}") from None
        for host in found:
            table.add(host, f"host {number}", "name each host once")
    return table.finished(FORMS)


def _looks_like_list(text: str) -> bool:
    if not any(sign in text for sign in ",[@:="):
        return False
    return text.startswith("ssh://") or "/" not in text.replace("ssh://", "")


def _words(line: str) -> list[str]:
    """The words of a line without its comment; the end of a line of Windows is no part of it."""
    return [word for word in re.split(r"[ \t]+", line.removesuffix("\r").partition("#")[0]) if word]


def _parse_line(words: list[str]) -> list[Host]:
    entry = _parse_word(words[0])
    slots = entry.slots
    for word in words[1:]:
        key, equals, value = word.partition("=")
        if key != "slots" or not equals:
            raise InputError(f"unknown key {quoted(word)}; the only one is slots=N")
        if slots is not None:
            raise InputError("the number of slots is given twice")
        slots = value
    if slots is None:
        return entry.hosts
    count = whole_number("slots", slots, MOST_SLOTS)
    return [Host(host.name, host.user, host.port, count) for host in entry.hosts]


def _parse_word(word: str) -> _Entry:
    is_url = word.startswith("ssh://")
    match = (URL if is_url else WORD).fullmatch(word)
    if match is None:
        hint = "; an IPv6 address stands in brackets, as [::1]:4" if word.count(":") > 1 else ""
        raise InputError(f"{quoted(word)} is not a host; write {FORMS}{hint}")
    port, slots = None, match["number"]
    if is_url:
        port = None if slots is None else whole_number("port", slots, MOST_PORT)
        slots = None
    host = match["host"]
    names = [host[1:-1]] if ":" in host else expand(host)
    try:
        return _Entry([Host(name, match["user"], port) for name in names], slots)
    except InputError:
        raise InputError(f"{quoted(word)} is not a host; write {FORMS}") from None


def _other_readings(line: str) -> tuple[str | Setting, ...]:
    """What the tools whose line this may be make of it, for a message; nothing if none reads it."""
    readings: dict[str, list[str]] = {}
    for form in FORMATS.values():
        try:
            hosts = form.parse([(1, line)], "")
        except InputError:
            continue
        readings.setdefault(", ".join(map(str, hosts)), []).append(form.tool)
    if not readings:
        return ()
    said = "; ".join(f"{' and '.join(tools)}: {text}" for text, tools in readings.items())
    return (
        f" (as others read it: {said}; say whose file this is by ",
        Setting("hosts_format"),
        ")",
    )
