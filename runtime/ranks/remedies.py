"""What can be wrong with a host, and what to do about it: a line for each."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ditplan.profiles.errors import Part, Sentence, one_line
from ditplan.profiles.host import Host

Severity = Literal["warning", "input", "cluster"]
"""Ranks run all the same; or what was given doesn't fit the hosts; or the hosts can't do it."""


@dataclass(frozen=True)
class Problem:
    """Something wrong with hosts; `host` names them, and is empty where `what` does."""

    host: str
    severity: Severity
    what: Sentence

    def __str__(self) -> str:
        return str(self.sentence)

    @property
    def sentence(self) -> Sentence:
        """The line, which knows its settings."""
        return Sentence(f"{self.host}: ", self.what) if self.host else self.what

    @property
    def is_fatal(self) -> bool:
        """Whether ranks can't be started."""
        return self.severity != "warning"


def problem(host: str, severity: Severity, *what: Part) -> Problem:
    """A problem in the words of which it is made."""
    return Problem(host, severity, Sentence(*what))


def ssh_command(host: Host) -> str:
    """What a user types to get to a host."""
    port = "" if host.port is None else f"-p {host.port} "
    user = "" if host.user is None else f"{host.user}@"
    return f"ssh {port}{user}{host.name}"


LONGEST = 500

FORGET = re.compile(r'ssh-keygen -f "[\w./~-]{1,300}" -R "[\w.:[\]-]{1,300}"')
"""What ssh says of a key that changed; nothing that a shell would take for more than a word."""

Reading = Callable[[re.Match[str], Host], str]


def _key_changed(found: re.Match[str], host: Host) -> str:
    forget = FORGET.search(found.string)
    by = f" by `{forget[0]}`" if forget else ""
    return (
        "its host key isn't the one that is known: another machine answers, or it was set up anew; "
        f"if so, forget the old key{by} and check the new one by `{ssh_command(host)}`"
    )


def _key_unknown(found: re.Match[str], host: Host) -> str:
    return (
        f"its host key isn't known here; run `{ssh_command(host)}` once, and compare the key that "
        "it shows with the host's"
    )


def _no_key(found: re.Match[str], host: Host) -> str:
    return (
        f"it lets nobody in with the keys that there are ({found[1]}); load one by `ssh-add`, or "
        f"put one there by `{ssh_command(host).replace('ssh', 'ssh-copy-id', 1)}`"
    )


def _no_name(found: re.Match[str], host: Host) -> str:
    return (
        f"no such host: this machine finds no address for {one_line(found[1], 60)}; correct the "
        "name, or add it to DNS, /etc/hosts or ~/.ssh/config"
    )


def _refused(found: re.Match[str], host: Host) -> str:
    return (
        f"nothing listens at port {found[2]} of {one_line(found[1], 60)}; start sshd there, or "
        "give its port as ssh://host:port"
    )


def _no_route(found: re.Match[str], host: Host) -> str:
    return f"there is no way to it ({found[1].lower()}); check its address and the network"


def _timed_out(found: re.Match[str], host: Host) -> str:
    return (
        "its sshd doesn't answer in time; check that it is up, its address, and that no firewall "
        f"is between: `{ssh_command(host)} true`"
    )


def _closed(found: re.Match[str], host: Host) -> str:
    return (
        "it closes the connection before anything is said: its sshd lets no more in, or not from "
        f"here; look at `{ssh_command(host)} true` and its sshd's log"
    )


def _no_python(found: re.Match[str], host: Host) -> str:
    return (
        f"it has no {found[1]}; Python and ditplan must lie at the same path on every host: "
        "install them there, or share the folder"
    )


def _not_allowed(found: re.Match[str], host: Host) -> str:
    return f"{found[1]} can't be executed there; make it executable for this user"


def _no_module(found: re.Match[str], host: Host) -> str:
    name = found[1].partition(".")[0]
    what = "ditplan, at the same path as here," if name == "ditplan" else name
    return f"its Python doesn't find {what}; install there what is installed here"


def _old_python(found: re.Match[str], host: Host) -> str:
    return "its Python is too old for ditplan; install the same one as here at the same path"


def _wrong_configuration(found: re.Match[str], host: Host) -> str:
    return f"ssh's own configuration is wrong: {one_line(found[0], 120)}; mend it"


def _slurm(found: re.Match[str], host: Host) -> str:
    return (
        f"srun can't start anything there: {one_line(found[1], 160)}; check by `squeue` that the "
        "job still runs and has the node"
    )


READINGS: tuple[tuple[re.Pattern[str], Reading], ...] = tuple(
    (re.compile(pattern, re.MULTILINE), reading)
    for pattern, reading in (
        (r"HOST IDENTIFICATION HAS CHANGED", _key_changed),
        (r"Host key verification failed", _key_unknown),
        (r"Permission denied \(([a-z,-]+)\)", _no_key),
        (r"Could not resolve hostname (.{1,255}?): ", _no_name),
        (r"connect to host (\S{1,255}) port (\d+): Connection refused", _refused),
        (r"connect to host .{1,255}: (No route to host|Network is unreachable)", _no_route),
        (r"(?:Connection|Operation) timed out|port \d+ timed out", _timed_out),
        (r"Connection (?:closed|reset) by ", _closed),
        (r"[Bb]ad configuration option|Bad owner or permissions on .*", _wrong_configuration),
        (r"^srun: error: (.*)", _slurm),
        (r"(/\S{1,400}): (?:No such file or directory|not found)", _no_python),
        (r"(/\S{1,400}): Permission denied", _not_allowed),
        (r"No module named '?([\w.]{1,100})", _no_module),
        (r"^SyntaxError|cannot import name '\w+' from 'typing'|unknown option -P", _old_python),
    )
)
"""What ssh, srun, a shell and Python say, as seen of OpenSSH 9.2, Slurm 22.05 and bash: they end
with the same code whatever is wrong.
"""


def why_not_started(host: Host, code: int | None, said: str) -> Sentence:
    """Why a program on a host didn't do what it was started for, in a line with the remedy.

    `code` is how it ended, None if it had to be ended; `said` is its standard error.
    """
    for pattern, reading in READINGS:
        if found := pattern.search(said):
            return Sentence(one_line(reading(found, host), LONGEST))
    last = next((line for line in reversed(said.splitlines()) if line.strip()), "")
    words = f": {one_line(last, 160)}" if last else ""
    if code is None:
        return Sentence(
            f"no answer in time{words}; check that it is up and not overloaded: "
            f"`{ssh_command(host)} true`"
        )
    return Sentence(f"what was started there ended with {code}{words}; try `{ssh_command(host)}`")
