"""The program as a user types it on n1, for ranks on n10 and n9."""

import json
import shlex
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from ditplan.planner.task import workload_for
from ditplan.profiles.catalog import find_model
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.plan import PlannedModel, bare_plan
from ditplan.runtime.groups import GroupCache, RankContext
from ditplan.runtime.ranks.devices import device_name
from tests.cluster import slurm
from tests.cluster.machines import HOSTS, INTERFACE, ROOT, Command, Machine, Machines

PROMPT = "a red circle left of a blue square"
FOLDER = "/tmp/job"
HOSTS_FILE = "".join(f"{name} slots=2\n" for name in HOSTS)
AGENT = "ditplan.runtime.ranks.agent"
STARTER = "ditplan.runtime.ranks.rank_starter"
ON_ALL_RANKS = Mesh(cfg=2, ulysses=2)
ENDS_WITHIN_S = 30.0
"""Of a fault: by then a command has ended, and everything of it on every host."""
STARTING_S = 180.0
DENOISING_BYTES = 200_000
"""More than starting ranks and agents says over the network, less than a second of denoising."""


@dataclass(frozen=True)
class Result:
    """What the program did."""

    exit_code: int
    output: str
    errors: str

    @property
    def json(self) -> dict[str, Any]:
        """What it printed under `--json`."""
        fields: dict[str, Any] = json.loads(self.output)
        return fields

    @property
    def line(self) -> str:
        """The last line that says what went wrong; empty where nothing did."""
        lines = (self.output + self.errors).splitlines()
        said = [line for line in lines if line.startswith("error: ")]
        return said[-1] if said else ""


@dataclass(frozen=True)
class Job:
    """A command that runs on n1."""

    machines: Machines
    command: Command
    errors: Path

    def said(self, words: str) -> None:
        """Waits until it says some words.

        Raises:
            AssertionError: it ends without, or takes too long.
        """
        deadline = time.monotonic() + STARTING_S
        while words not in self.errors.read_text():
            ended = self.command.popen.poll() is not None
            assert not ended and time.monotonic() < deadline, self.errors.read_text()
            time.sleep(0.05)

    def denoises(self) -> None:
        """Waits until ranks exchange tensors.

        Raises:
            AssertionError: it ends without, or takes too long.
        """
        self.said("running on")
        sender = self.machines[HOSTS[0]]
        before, deadline = sent_bytes(sender), time.monotonic() + STARTING_S
        while sent_bytes(sender) < before + DENOISING_BYTES:
            ended = self.command.popen.poll() is not None
            assert not ended and time.monotonic() < deadline, self.errors.read_text()
            time.sleep(0.05)

    def result(self, timeout_s: float = 600.0) -> Result:
        """Waits for its end."""
        done = self.command.finished(timeout_s)
        return Result(done.returncode, done.stdout, self.errors.read_text())


def ditplan(machines: Machines, *arguments: str, on: str = "n1", before: str = "") -> Job:
    """Starts the program on a machine, in FOLDER; words `before` it are such as salloc's."""
    machine = machines[on]
    errors = machine.write(f"{FOLDER}/errors.txt", "")
    words = [*shlex.split(before), sys.executable, str(ROOT / "cli.py"), *arguments]
    shell = ["sh", "-c", 'exec "$0" "$@" 2>errors.txt', *words]
    return Job(machines, machine.start(shell, environment=slurm.ENVIRONMENT, folder=FOLDER), errors)


def write_hosts(machines: Machines, text: str = HOSTS_FILE) -> None:
    """hosts.txt, on n1."""
    machines["n1"].write(f"{FOLDER}/hosts.txt", text)


def write_plan(machines: Machines, name: str, steps: int, mesh: Mesh = ON_ALL_RANKS) -> None:
    """A plan of `sd3-tiny` that nobody searched, on n1."""
    spec = find_model("sd3-tiny")
    workload = workload_for(spec, "cpu", steps=steps)
    plan = bare_plan(PlannedModel.of_spec(spec), workload, mesh)
    here = device_name(RankContext(0, 1, torch.device("cpu"), GroupCache(0, 1)))
    devices = plan.fingerprint.model_copy(update={"devices": (here,) * plan.mesh.size})
    plan.model_copy(update={"fingerprint": devices}).save(
        machines["n1"].write(f"{FOLDER}/{name}", "")
    )


def tune(out: str, *more: str) -> list[str]:
    """Arguments that tune `sd3-tiny`."""
    hosts = ("--hosts", "hosts.txt", "--json")
    return ["tune", "--model", "sd3-tiny", *hosts, "--out", out, *more]


def run(plan: str, out: str, *more: str) -> list[str]:
    """Arguments that run a plan."""
    hosts = ("--hosts", "hosts.txt", "--json")
    return ["run", "--plan", plan, *hosts, "--prompt", PROMPT, "--out", out, *more]


def sent_bytes(machine: Machine) -> int:
    """What has left a machine by its interface."""
    for line in Path(f"/proc/{machine.pid}/net/dev").read_text().splitlines():
        name, _, numbers = line.strip().partition(":")
        if name == INTERFACE:
            return int(numbers.split()[8])
    raise AssertionError(f"{machine.name} has no {INTERFACE}")


def agents(machine: Machine) -> list[psutil.Process]:
    """The agent on a machine."""
    return _pythons(machine, AGENT)


def ranks(machine: Machine) -> list[psutil.Process]:
    """The ranks on a machine, in the order in which they were started."""
    starters = _pythons(machine, STARTER)
    numbers = {process.pid for process in starters}
    forked = [process for process in starters if process.ppid() in numbers]
    return sorted(forked, key=lambda process: process.pid)


def leftovers(machines: Machines) -> list[str]:
    """What of ours still runs anywhere, as "host: command"."""
    return [
        f"{machine.name}: {' '.join(process.cmdline())}"
        for machine in machines
        for process in machine.processes(containing="ditplan")
    ]


def wait_for_no_leftovers(machines: Machines) -> None:
    """Waits until nothing of ours runs anywhere.

    Raises:
        AssertionError: something still does after 30 s.
    """
    deadline = time.monotonic() + ENDS_WITHIN_S
    while left := leftovers(machines):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def kept_folders(machines: Machines) -> list[str]:
    """The folders of logs that are still there, as "host: folder"."""
    return [
        f"{machine.name}: /tmp/{folder.name}"
        for machine in machines
        for folder in sorted(machine.path("/tmp").glob("ditplan-*"))
    ]


def remove_kept_folders(machines: Machines) -> None:
    """Removes them, on every machine."""
    for machine in machines:
        for folder in machine.path("/tmp").glob("ditplan-*"):
            shutil.rmtree(folder)


def end_leftovers(machines: Machines) -> None:
    """Kills what a command has left, so that the next one doesn't meet it."""
    for machine in machines:
        for process in machine.processes(containing="ditplan"):
            process.kill()


def _pythons(machine: Machine, module: str) -> list[psutil.Process]:
    """Not the shell by which ssh starts it."""
    found = machine.processes(containing=module)
    return [process for process in found if process.name().startswith("python")]
