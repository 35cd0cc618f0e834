"""OpenSSH between machines: a server on each, and one user who may reach all of them with a key
made for the test.
"""

import contextlib
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.cluster.machines import HOME, HOSTS, STARTING_S, Command, Machine, Machines

PROGRAMS = ("ssh", "ssh-keygen", "sshd")
SERVER = "/usr/sbin/sshd"
PORT = 22
CONFIGURATION = f"""\
Port {PORT}
HostKey /tmp/sshd/host_key
PidFile none
AuthorizedKeysFile {HOME}/.ssh/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
"""


@contextlib.contextmanager
def machines_with_ssh() -> Iterator[Machines]:
    """n1, where commands are typed, and the HOSTS, all reached from there by ssh."""
    with Machines(("n1", *HOSTS)) as machines:
        let_in(machines["n1"], machines)
        for machine in machines:
            start_server(machine)
        yield machines


def make_key(file: Path) -> str:
    """Makes a key pair and returns its public half."""
    words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(file)]
    subprocess.run(words, check=True)
    return file.with_suffix(".pub").read_text()


def let_in(user: Machine, machines: Iterable[Machine]) -> None:
    """Root of one machine may log in on all of them, whose keys it knows by name and address."""
    keys = user.path(f"{HOME}/.ssh")
    keys.mkdir(mode=0o700)
    public = make_key(keys / "id_ed25519")
    known = []
    for machine in machines:
        machine.write(f"{HOME}/.ssh/authorized_keys", public)
        folder = machine.path("/tmp/sshd")
        folder.mkdir()
        host_key = make_key(folder / "host_key")
        known.append(f"{machine.name},{machine.address} {host_key}")
    user.write(f"{HOME}/.ssh/known_hosts", "".join(known))


def start_server(machine: Machine) -> Command:
    """Starts sshd on a machine and waits until it listens.

    Raises:
        TimeoutError: it doesn't; the message holds what it says.
    """
    machine.write("/tmp/sshd/config", CONFIGURATION)
    machine.must("mkdir", "-p", "/run/sshd")
    log = "/tmp/sshd/log"
    server = machine.start([SERVER, "-D", "-E", log, "-f", "/tmp/sshd/config"])
    deadline = time.monotonic() + STARTING_S
    while PORT not in {port for _, port in machine.listening()}:
        if time.monotonic() > deadline or server.popen.poll() is not None:
            said = machine.path(log).read_text()
            raise TimeoutError(f"{machine.name}: sshd doesn't listen: {said}")
        time.sleep(0.02)
    return server
