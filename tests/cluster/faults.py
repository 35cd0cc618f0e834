"""What goes wrong with machines and processes, and what a command then shows and leaves."""

import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.cluster import jobs
from tests.cluster.jobs import ENDS_WITHIN_S, Job, ditplan
from tests.cluster.machine_init import DISK
from tests.cluster.machines import HOME, Machines
from tests.cluster.secure_shell import start_server

SHORT, ENDLESS = "short.json", "endless.json"
USUAL_PORT = 29500
"""Of torch's rendezvous."""
LISTENER = f"import socket, time; s = socket.create_server(('', {USUAL_PORT})); time.sleep(1e6)"
KNOWN_HOSTS = f"{HOME}/.ssh/known_hosts"
DEBIAN_ADDRESS = "127.0.1.1"


@dataclass(frozen=True)
class Fault:
    """Something that is so when a command starts, or befalls it while its ranks denoise, and how it
    is mended; then what is to be seen: the exit code and words of the line on screen.
    """

    name: str
    exit_code: int
    words: tuple[str, ...]
    before: Callable[[Machines], None] | None = None
    during: Callable[[Job], None] | None = None
    after: Callable[[Machines], None] | None = None

    def __str__(self) -> str:
        return self.name

    def differences(self, seen: "Observed") -> list[str]:
        """How what was observed differs from what is to be seen."""
        wrong = []
        if seen.exit_code != self.exit_code:
            wrong.append(f"exit code {seen.exit_code} in place of {self.exit_code}")
        wrong += [f"the line lacks {word!r}" for word in self.words if word not in seen.line]
        wrong += [f"left: {process}" for process in seen.processes]
        if self.during is not None and seen.seconds > ENDS_WITHIN_S:
            wrong.append(f"{seen.seconds:.1f} s")
        return wrong


@dataclass(frozen=True)
class Observed:
    """What a fault came to. `seconds` are those from the fault, or from the start where there was a
    fault by then, until nothing of the command is left on any host.
    """

    seconds: float
    exit_code: int
    line: str
    processes: tuple[str, ...]
    folders: tuple[str, ...]


def observe(machines: Machines, fault: Fault) -> Observed:
    """Starts a run under a fault, or with one befalling it, and sees what is left 30 s later."""
    jobs.write_hosts(machines)
    jobs.write_plan(machines, SHORT, steps=4)
    jobs.write_plan(machines, ENDLESS, steps=100_000)
    jobs.remove_kept_folders(machines)
    try:
        if fault.before is not None:
            fault.before(machines)
        began = time.monotonic()
        plan = SHORT if fault.during is None else ENDLESS
        job = ditplan(machines, *jobs.run(plan, "picture.png"))
        if fault.during is not None:
            job.denoises()
            began = time.monotonic()
            fault.during(job)
        result = job.result()
        while (left := jobs.leftovers(machines)) and time.monotonic() < began + ENDS_WITHIN_S:
            time.sleep(0.1)
        seconds = time.monotonic() - began
        folders = jobs.kept_folders(machines)
    finally:
        if fault.after is not None:
            fault.after(machines)
        jobs.end_leftovers(machines)
    return Observed(seconds, result.exit_code, result.line, tuple(left), tuple(folders))


def _on_rank_3(number: signal.Signals) -> Callable[[Job], None]:
    """Rank 3 is the second on n9, the second host."""
    return lambda job: jobs.ranks(job.machines["n9"])[1].send_signal(number)


def _on_agent(number: signal.Signals) -> Callable[[Job], None]:
    return lambda job: jobs.agents(job.machines["n9"])[0].send_signal(number)


def _kill_command(job: Job) -> None:
    job.command.process.kill()


def _kill_sshd(job: Job) -> None:
    """The server of n9, and what it has for each connection."""
    for process in job.machines["n9"].processes(containing="sshd"):
        process.kill()


def _restart_sshd(machines: Machines) -> None:
    start_server(machines["n9"])


def _pull_plug(job: Job) -> None:
    job.machines["n9"].set_link("down")


def _plug_in(machines: Machines) -> None:
    machines["n9"].set_link("up")


def _fill_disk(machines: Machines) -> None:
    machines["n9"].must("mount", "-o", "remount,size=64m", "/tmp")
    machines["n9"].run("sh", "-c", "cat /dev/zero > /tmp/full")


def _empty_disk(machines: Machines) -> None:
    machines["n9"].path("/tmp/full").unlink()
    machines["n9"].must("mount", "-o", f"remount,{DISK}", "/tmp")


def _replace_torch(machines: Machines) -> None:
    """By files that say another version: both what `import torch` and what pip goes by."""
    n9 = machines["n9"]
    for file in _torch_versions():
        text = file.read_text().replace(torch.__version__.partition("+")[0], "2.9.9")
        n9.write(f"/tmp/torch/{file.name}", text)
        n9.must("mount", "--bind", f"/tmp/torch/{file.name}", str(file))


def _put_torch_back(machines: Machines) -> None:
    for file in _torch_versions():
        machines["n9"].must("umount", str(file))


def _torch_versions() -> list[Path]:
    package = Path(torch.__file__).parent
    (metadata,) = package.parent.glob("torch-*.dist-info/METADATA")
    return [package / "version.py", metadata]


def _take_port(machines: Machines) -> None:
    for machine in machines:
        machine.start([sys.executable, "-c", LISTENER])
        while USUAL_PORT not in {port for _, port in machine.listening()}:
            time.sleep(0.02)


def _free_port(machines: Machines) -> None:
    for machine in machines:
        for process in machine.processes(containing="create_server"):
            process.kill()


def _forget_key(machines: Machines) -> None:
    """That of n9, by name and by address."""
    known = machines["n1"].path(KNOWN_HOSTS)
    shutil.copy(known, f"{known}.kept")
    lines = known.read_text().splitlines(keepends=True)
    known.write_text("".join(line for line in lines if not line.startswith("n9,")))


def _remember_key(machines: Machines) -> None:
    known = machines["n1"].path(KNOWN_HOSTS)
    shutil.move(f"{known}.kept", known)


def _add_debian_line(machines: Machines) -> None:
    """Debian's installer has each machine's own name lead to 127.0.1.1."""
    for machine in machines:
        file = machine.path("/etc/hosts")
        machine.write("/etc/hosts", f"{DEBIAN_ADDRESS} {machine.name}\n{file.read_text()}")


def _remove_debian_line(machines: Machines) -> None:
    for machine in machines:
        lines = machine.path("/etc/hosts").read_text().splitlines(keepends=True)
        kept = "".join(line for line in lines if not line.startswith(DEBIAN_ADDRESS))
        machine.write("/etc/hosts", kept)


FAULTS = (
    Fault("SIGKILL of a rank", 3, ("n9", "rank 3", "SIGKILL"), during=_on_rank_3(signal.SIGKILL)),
    Fault("SIGSTOP of a rank", 3, ("n9", "rank 3", "stopped"), during=_on_rank_3(signal.SIGSTOP)),
    Fault("SIGKILL of an agent", 3, ("n9",), during=_on_agent(signal.SIGKILL)),
    Fault("SIGSTOP of an agent", 3, ("n9",), during=_on_agent(signal.SIGSTOP)),
    Fault("SIGKILL of the command", -signal.SIGKILL, (), during=_kill_command),
    Fault("SIGKILL of sshd", 3, ("n9",), during=_kill_sshd, after=_restart_sshd),
    Fault("link down", 3, ("n9",), during=_pull_plug, after=_plug_in),
    Fault("disk full", 3, ("n9",), before=_fill_disk, after=_empty_disk),
    Fault("other torch", 3, ("n9", "2.9.9"), before=_replace_torch, after=_put_torch_back),
    Fault("port 29500 taken", 0, (), before=_take_port, after=_free_port),
    Fault("unknown host key", 3, ("n9", "key"), before=_forget_key, after=_remember_key),
    Fault("127.0.1.1", 0, (), before=_add_debian_line, after=_remove_debian_line),
)
"""Each befalls n9, the second host, where it is one host's."""
