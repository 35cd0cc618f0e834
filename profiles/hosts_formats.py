"""Hosts files of other launchers and of schedulers, each read as the tool itself reads it.

What a tool takes otherwise than one would read it (`a:2` is a host's name to Open MPI, `slots=4abc`
are four slots to DeepSpeed) is refused in words, and so is what a list of hosts with their numbers
of ranks can't say (MPICH puts `a:2`, `b:1`, `a:1` in the order a a b a).

Seen with Open MPI 4.1.4 and 5.0.11, MPICH 4.0.2 and 5.0.2, and DeepSpeed 0.19.8.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

from ditplan.profiles.bounds import MOST_SLOTS
from ditplan.profiles.errors import InputError
from ditplan.profiles.host import Host, HostKey, HostTable, quoted, whole_number

HostsFormat = Literal["ditplan", "openmpi", "mpich", "deepspeed", "pbs", "lsf"]
Lines = Iterable[tuple[int, str]]

OPENMPI_SLOTS = {"slots", "cpu", "count"}
OPENMPI_MOST = {"max_slots", "max-slots", "slots_max", "slots-max"}
IPV4 = re.compile(r"(?:[0-9]{1,3}\.){3}[0-9]{1,3}")


@dataclass(frozen=True)
class Format:
    """What a tool is called in messages, how a line of its is written, and its parser."""

    tool: str
    forms: str
    parse: Callable[[Lines, str], tuple[Host, ...]]


def parse_openmpi(lines: Lines, where: str) -> tuple[Host, ...]:
    """`[user@]host [slots=N] [max_slots=N]`; lines of one host without numbers add up.

    Names are one where they are up to the first dot. `slots`, `cpu` and `count` mean the same.

    Raises:
        InputError: what Open MPI refuses or takes otherwise than it reads.
    """
    table = HostTable(where)
    cut: dict[str, Host] = {}
    for number, line in lines:
        place = f"line {number}"
        at = f"{where}: {place}"
        _refuse_carriage_return(line, at, "Open MPI refuses")
        words = re.sub(r"[ \t]*=[ \t]*", "=", line.partition("#")[0]).split()
        if not words:
            continue
        host = _named(words[0], at, "Open MPI", has_user=True)
        slots = _openmpi_slots(words[1:], at)
        short = host.name if IPV4.fullmatch(host.name) else host.name.partition(".")[0]
        before = cut.get(short.lower())
        if before is None:
            host = replace(host, slots=slots)
        elif replace(before, slots=None) != host:
            raise InputError(
                f"{at}: {before} and {host} are one host to Open MPI, which cuts names at the "
                "first dot; name it in one way"
            )
        elif slots is not None:
            raise InputError(
                f"{at}: {host.name} stands above already, and Open MPI takes a number of slots in "
                "a host's first line alone; give it once"
            )
        else:
            count = whole_number(f"{at}: slots", str((before.slots or 1) + 1), MOST_SLOTS)
            host = replace(before, slots=count)
        cut[short.lower()] = host
        table.put(host)
    return table.finished(FORMATS["openmpi"].forms)


def parse_mpich(lines: Lines, where: str) -> tuple[Host, ...]:
    """`host` or `host:N`, a rank each without a number.

    Raises:
        InputError: what MPICH refuses, or an order of ranks that goes back to a host.
    """
    table = HostTable(where)
    last: HostKey | None = None
    for number, line in lines:
        at = f"{where}: line {number}"
        _refuse_carriage_return(line, at, "MPICH takes for a part of the name")
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) > 1:
            raise InputError(
                f"{at}: {quoted(words[1])} stands behind a host; with MPICH a line is `host` or "
                "`host:N`, and a comment has a line of its own (MPICH 5 takes it for no comment)"
            )
        name, colon, count = words[0].partition(":")
        slots = whole_number(f"{at}: slots", count, MOST_SLOTS) if colon else 1
        host = _named(name, at, "MPICH", has_user=False)
        before = table.hosts.get(host.key)
        if before is not None and last != host.key:
            raise InputError(
                f"{at}: MPICH goes back to {host.name} after other hosts' ranks; here all ranks of "
                "a host follow each other: put its lines together"
            )
        slots += before.slots or 0 if before else 0
        table.put(replace(host, slots=whole_number(f"{at}: slots", str(slots), MOST_SLOTS)))
        last = host.key
    return table.finished(FORMATS["mpich"].forms)


def parse_deepspeed(lines: Lines, where: str) -> tuple[Host, ...]:
    """`[user@]host slots=N`; a host once.

    Raises:
        InputError: what DeepSpeed refuses, or would leave out without a word.
    """
    table = HostTable(where)
    for number, line in lines:
        place = f"line {number}"
        at = f"{where}: {place}"
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = re.fullmatch(r"(\S+)\s+slots=([0-9]+)(.*)", line)
        if match is None:
            raise InputError(f"{at}: {quoted(line)} is not `host slots=N`, as DeepSpeed wants it")
        name, slots, rest = match.groups()
        if rest.strip() and not rest.lstrip().startswith("#"):
            raise InputError(
                f"{at}: DeepSpeed reads slots={slots} and leaves out {quoted(rest.strip())}; "
                "leave it out as well"
            )
        host = _named(name, at, "DeepSpeed", has_user=True)
        count = whole_number(f"{at}: slots", slots, MOST_SLOTS)
        table.add(replace(host, slots=count), place, "DeepSpeed takes a host once")
    return table.finished(FORMATS["deepspeed"].forms)


def _scheduler_parser(tool: str) -> Callable[[Lines, str], tuple[Host, ...]]:
    """A parser of one host a line for each of its slots; hosts follow in the order of their
    first lines.
    """

    def parse(lines: Lines, where: str) -> tuple[Host, ...]:
        table = HostTable(where)
        for number, line in lines:
            at = f"{where}: line {number}"
            _refuse_carriage_return(line, at, f"{tool} doesn't write")
            words = line.split()
            if not words:
                continue
            if len(words) > 1:
                raise InputError(
                    f"{at}: {quoted(words[1])} stands behind a host; {tool} writes a host a line, "
                    "as often as it has slots"
                )
            host = _named(words[0], at, tool, has_user=False)
            before = table.hosts.get(host.key)
            slots = 1 + (before.slots or 0 if before else 0)
            whole_number(f"{at}: slots", str(slots), MOST_SLOTS)
            table.put(replace(host, slots=slots))
        return table.finished(f"`host`, as often as it has slots, as {tool} does")

    return parse


def _openmpi_slots(words: list[str], at: str) -> int | None:
    found: dict[str, int] = {}
    for word in words:
        key, equals, value = word.partition("=")
        kind = "slots" if key in OPENMPI_SLOTS else "max_slots" if key in OPENMPI_MOST else None
        if kind is None or not equals:
            raise InputError(
                f"{at}: unknown key {quoted(word)}; known of Open MPI's are slots=N and max_slots=N"
            )
        if kind in found:
            raise InputError(f"{at}: {kind} is given twice")
        found[kind] = whole_number(f"{at}: {key}", value, MOST_SLOTS)
    slots, most = found.get("slots"), found.get("max_slots")
    if slots is not None and most is not None and slots > most:
        raise InputError(f"{at}: slots={slots} is more than max_slots={most}")
    return most if slots is None else slots


def _named(word: str, at: str, tool: str, *, has_user: bool) -> Host:
    """The host of a word in a tool's file."""
    user, sign, name = word.rpartition("@") if has_user else ("", "", word)
    if ":" in name or "[" in name:
        raise InputError(
            f"{at}: {tool} takes {quoted(word)} for a host's name; write it without brackets and "
            "colon, its number of slots as this format has it"
        )
    try:
        return Host(name, user if sign else None)
    except InputError as error:
        raise InputError(f"{at}: {error}") from None


def _refuse_carriage_return(line: str, at: str, what: str) -> None:
    if line.endswith("\r"):
        raise InputError(
            f"{at}: the line ends in CR LF, as on Windows, which {what}; save the file with line "
            "ends of LF alone"
        )


FORMATS: dict[HostsFormat, Format] = {
    "openmpi": Format("Open MPI", "`host`, `host slots=4` or `user@host slots=4`", parse_openmpi),
    "mpich": Format("MPICH", "`host` or `host:4`", parse_mpich),
    "deepspeed": Format("DeepSpeed", "`host slots=4`", parse_deepspeed),
    "pbs": Format("PBS", "`host`", _scheduler_parser("PBS")),
    "lsf": Format("LSF", "`host`", _scheduler_parser("LSF")),
}
