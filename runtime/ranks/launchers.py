"""How a module of ours is started on a host: directly, by OpenSSH, or by Slurm's srun.

The user's own ssh configuration and keys hold, and no question is ever asked. Whatever is started
is told by its standard input what to do: nothing secret stands on a command line. Each host has the
interpreter that runs here at the same path, and ditplan in it.
"""

import ipaddress
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Literal

import psutil

from ditplan.profiles.host import Host
from ditplan.profiles.hosts_of_job import nodes_of

Launcher = Literal["direct", "ssh", "srun"]

SSH = (
    "ssh",
    # neither a password nor whether to trust a key is asked for
    *("-o", "BatchMode=yes"),
    *("-o", "ConnectTimeout=10"),
    *("-o", "ServerAliveInterval=5"),
    *("-o", "ServerAliveCountMax=3"),
    # a connection that the user has open is used; none that outlives the job is left
    *("-o", "ControlMaster=no"),
    # ports that a configuration forwards could be opened once only, and are no host's business
    *("-o", "ClearAllForwardings=yes"),
    *("-a", "-x", "-T"),
)
SRUN = (
    "srun",
    "--nodes=1",
    "--ntasks=1",
    "--ntasks-per-node=1",
    # beside what the job runs already; a step's one task would be kept to one core
    "--overlap",
    "--cpu-bind=none",
    "--export=ALL",
    "--input=all",
    # output that isn't lines would wait for the end of one
    "--unbuffered",
)


@dataclass(frozen=True)
class Launch:
    """What this machine runs, word by word, so that a module of ours runs on a host."""

    host: Host
    launcher: Launcher
    words: tuple[str, ...]

    def __str__(self) -> str:
        """As one would type it."""
        return shlex.join(self.words)

    def start(
        self, environment: Mapping[str, str], errors: IO[bytes] | int
    ) -> subprocess.Popen[bytes]:
        """Starts it, with pipes for standard input and output, in a session of its own: an
        interrupt from the keyboard is for the command alone.

        `environment` is that of the program started here; ssh passes none of it on.

        Raises:
            OSError: there is no such program here.
        """
        return subprocess.Popen(
            self.words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=dict(environment),
            start_new_session=True,
        )


def launch_on(host: Host, module: str, environment: Mapping[str, str]) -> Launch:
    """How a module is started on a host.

    Raises:
        InputError: the list of nodes of the Slurm job that this runs in can't be understood.
    """
    launcher = launcher_of(host, environment)
    words: tuple[str, ...] = (sys.executable, "-P", "-m", module)
    if launcher == "ssh":
        port = ("-p", str(host.port)) if host.port else ()
        address = f"{host.user}@{host.name}" if host.user else host.name
        # what ssh is given is put together to one line and read by a shell there
        words = (*SSH, *port, "--", address, shlex.join(words))
    elif launcher == "srun":
        words = (*SRUN, f"--nodelist={host.name}", *words)
    return Launch(host, launcher, words)


def launcher_of(host: Host, environment: Mapping[str, str]) -> Launcher:
    """By what a host is reached: it may be this machine, or a node of the Slurm job that this runs
    in.

    Raises:
        InputError: that job's list of nodes can't be understood.
    """
    if host.user is not None or host.port is not None:
        return "ssh"
    if is_this_machine(host.name):
        return "direct"
    nodes = environment.get("SLURM_JOB_NODELIST")
    if nodes and environment.get("SLURM_JOB_ID"):
        names = {node.name.lower() for node in nodes_of(nodes, "SLURM_JOB_NODELIST")}
        if host.name.lower() in names:
            return "srun"
    return "ssh"


def is_this_machine(name: str) -> bool:
    """Whether a host's name is this machine's, or its address one of this machine's."""
    here = socket.gethostname().lower()
    if name.lower() in {"localhost", here, here.partition(".")[0]}:
        return True
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return address in _own_addresses()


def _own_addresses() -> set[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    return {
        ipaddress.ip_address(one.address.partition("%")[0])
        for addresses in psutil.net_if_addrs().values()
        for one in addresses
        if one.family in (socket.AF_INET, socket.AF_INET6)
    }
