"""Machines for tests: each is a set of Linux namespaces with a network interface, a name, an
/etc/hosts, a /tmp and processes of its own. They share a switch, the file system's rest and the
cores. Nothing of them outlives this process, or is seen outside of them.
"""

import contextlib
import ipaddress
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

ROOT = Path(__file__).parents[2]
"""The checkout, at the same path on every machine."""
HOSTS = ("n10", "n9")
"""Where ranks run, in the order of hosts files, which isn't that of names or addresses."""
NETWORK = "10.77.0"
INTERFACE = "eth0"
HOME = "/tmp/home"
"""Root's home on every machine; each has its own."""
BURST = "640kbit"
"""Of `tc tbf`: with less, a virtual link doesn't reach its rate."""
STARTING_S = 20.0
LISTENING = "0A"
"""The state of a listening socket in /proc/net/tcp."""

PASSWORDS = f"""\
root:x:0:0:root:{HOME}:/bin/bash
sshd:x:103:65534::/run/sshd:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
"""
"""OpenSSH looks the home of its configuration up here, whatever HOME says."""


def missing_programs(*more: str) -> list[str]:
    """Which programs that machines need, `more` among them, aren't installed."""
    needed = ("ip", "tc", "unshare", "nsenter", "mount", *more)
    return [name for name in needed if shutil.which(name, path=SEARCH_PATH) is None]


SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRONMENT = {
    "PATH": SEARCH_PATH,
    "HOME": HOME,
    "USER": "root",
    "LANG": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
}


@dataclass(frozen=True)
class Command:
    """A program that was started on a machine; what it prints goes to pipes."""

    popen: subprocess.Popen[str]

    @property
    def process(self) -> psutil.Process:
        """The program itself: `nsenter`, which came before it, only waits for it."""
        deadline = time.monotonic() + STARTING_S
        while time.monotonic() < deadline:
            for child in psutil.Process(self.popen.pid).children():
                return child
            time.sleep(0.01)
        raise TimeoutError("nsenter started no process")

    def finished(self, timeout_s: float) -> subprocess.CompletedProcess[str]:
        """What it printed and its exit status, once it has ended.

        Raises:
            subprocess.TimeoutExpired: it hadn't ended in time, and was killed.
        """
        try:
            output, errors = self.popen.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            for child in psutil.Process(self.popen.pid).children():
                child.kill()
            output, errors = self.popen.communicate(timeout=STARTING_S)
            raise subprocess.TimeoutExpired(error.cmd, timeout_s, output, errors) from None
        return subprocess.CompletedProcess(self.popen.args, self.popen.returncode, output, errors)


class Machine:
    """One machine."""

    def __init__(self, name: str, address: str) -> None:
        """Starts it, without a network yet.

        Raises:
            OSError: it couldn't be started.
        """
        self.name = name
        self.address = address
        kept = dict.fromkeys(str(path) for path in (ROOT, sys.prefix, sys.base_prefix))
        self._init = subprocess.Popen(
            [
                *("unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork"),
                *("--mount-proc", sys.executable, "-I", "-S"),
                *(str(Path(__file__).with_name("machine_init.py")), name, *kept),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._init.stdout is not None
        if self._init.stdout.readline() != b"ready\n":
            raise OSError(f"machine {name} didn't start")
        self.pid = psutil.Process(self._init.pid).children()[0].pid
        """Its process 1, as seen from outside."""
        self.write("/etc/hosts", "127.0.0.1 localhost\n")
        self.write("/etc/hostname", f"{name}\n")
        self.write("/etc/passwd", PASSWORDS)
        self.write("/etc/shadow", "root:*:20000:0:99999:7:::\n")
        self.path(HOME).mkdir()

    def path(self, path: str) -> Path:
        """A path of the machine, as it is reached from outside."""
        return Path(f"/proc/{self.pid}/root{path}")

    def write(self, path: str, text: str) -> Path:
        """Writes a file of the machine, and makes its folder."""
        file = self.path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def start(
        self,
        words: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        folder: str = "/tmp",
    ) -> Command:
        """Starts a program on the machine, in a `folder` of it."""
        namespaces = ("--mount", "--uts", "--ipc", "--net", "--pid")
        popen = subprocess.Popen(
            ["nsenter", "--target", str(self.pid), *namespaces, "env", "-C", folder, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**ENVIRONMENT, **(environment or {})},
            start_new_session=True,
        )
        return Command(popen)

    def run(
        self, *words: str, timeout_s: float = 60.0, folder: str = "/tmp"
    ) -> subprocess.CompletedProcess[str]:
        """Runs a program on the machine to its end."""
        return self.start(words, folder=folder).finished(timeout_s)

    def must(self, *words: str, timeout_s: float = 60.0) -> str:
        """What a program prints that has to succeed.

        Raises:
            RuntimeError: it failed.
        """
        done = self.run(*words, timeout_s=timeout_s)
        if done.returncode != 0:
            raise RuntimeError(f"{self.name}: {' '.join(words)}: {done.stderr}")
        return done.stdout

    def processes(self, *, containing: str = "") -> list[psutil.Process]:
        """What runs on the machine and has this text in its command line; not its process 1."""
        here = _namespace(self.pid)
        return [
            process
            for process in psutil.process_iter()
            if process.pid != self.pid
            and _namespace(process.pid) == here
            and containing in _command_line(process)
        ]

    def listening(self) -> set[tuple[str, int]]:
        """Where programs of the machine listen by TCP: address and port."""
        found = set()
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/{self.pid}/net/{table}").read_text().splitlines()[1:]:
                _, local, _, state, *_ = line.split()
                address, _, port = local.partition(":")
                if state == LISTENING:
                    found.add((_address(address), int(port, 16)))
        return found

    def limit(self, rate: str) -> None:
        """What the machine sends goes at this rate at most, such as "1gbit"."""
        self.must(
            *("tc", "qdisc", "replace", "dev", INTERFACE, "root", "tbf"),
            *("rate", rate, "burst", BURST, "latency", "50ms"),
        )

    def set_link(self, state: str) -> None:
        """Takes the machine's interface "down" or "up"."""
        self.must("ip", "link", "set", INTERFACE, state)

    def close(self) -> None:
        """Ends the machine and every process on it."""
        self._init.kill()
        with contextlib.suppress(psutil.NoSuchProcess):
            # Process 1 takes all others of its namespace along.
            psutil.Process(self.pid).kill()
        self._init.communicate(timeout=STARTING_S)


class Machines:
    """Machines on one switch, by name; a context manager. Each is known to all by its name."""

    def __init__(self, names: Sequence[str]) -> None:
        """Starts them; the number in a name is the last of its address, so each needs its own."""
        self._opened = contextlib.ExitStack()
        self._machines: dict[str, Machine] = {}
        with contextlib.ExitStack() as opened:
            switch = self._started("switch", "", opened)
            switch.must("ip", "link", "add", "bridge", "type", "bridge")
            switch.must("ip", "link", "set", "bridge", "up")
            for name in names:
                number = int("".join(letter for letter in name if letter.isdigit()))
                machine = self._started(name, f"{NETWORK}.{number}", opened)
                _plug(machine, switch)
                self._machines[name] = machine
            self._opened = opened.pop_all()
        known = "".join(f"{machine.address} {machine.name}\n" for machine in self)
        for machine in self:
            machine.write("/etc/hosts", f"127.0.0.1 localhost\n{known}")

    def _started(self, name: str, address: str, opened: contextlib.ExitStack) -> Machine:
        machine = Machine(name, address)
        opened.callback(machine.close)
        return machine

    def __getitem__(self, name: str) -> Machine:
        return self._machines[name]

    def __iter__(self) -> Iterator[Machine]:
        return iter(self._machines.values())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._opened.close()


def _plug(machine: Machine, switch: Machine) -> None:
    """Connects a machine to the switch."""
    plug = f"to-{machine.name}"
    # By the network of the switch alone: the number of the machine's process is that of outside.
    subprocess.run(
        [
            *("nsenter", f"--net=/proc/{switch.pid}/ns/net", "ip", "link", "add", plug),
            *("type", "veth", "peer", "name", INTERFACE, "netns", str(machine.pid)),
        ],
        check=True,
    )
    switch.must("ip", "link", "set", plug, "master", "bridge", "up")
    machine.must("ip", "address", "add", f"{machine.address}/24", "dev", INTERFACE)
    machine.set_link("up")


def _address(words: str) -> str:
    """An address of /proc/net/tcp: words of 32 bits, the last byte of each first."""
    turned = (bytes.fromhex(words[at : at + 8])[::-1] for at in range(0, len(words), 8))
    return str(ipaddress.ip_address(b"".join(turned)))


def _namespace(pid: int) -> str | None:
    """The processes among which one is numbered; None where it has ended."""
    try:
        return str(Path(f"/proc/{pid}/ns/pid").readlink())
    except OSError:
        return None


def _command_line(process: psutil.Process) -> str:
    """Empty for what has ended: a zombie has none either."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
