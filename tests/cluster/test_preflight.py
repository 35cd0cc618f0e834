"""Preflight of hosts that are reached by ssh and by srun: each fault is told apart from the others,
with the host and the remedy, while all other hosts are looked at as ever.
"""

import contextlib
import importlib.metadata
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import slurm
from tests.cluster.machines import HOME, INTERFACE, ROOT, Machine, Machines
from tests.cluster.secure_shell import start_server

pytestmark = pytest.mark.cluster

LONGEST_S = 15.0
STARTING_S = 5.0
"""Of the command itself, on two busy cores."""

WORDS = [sys.executable, "-m", "ditplan", "preflight", "--json", "--hosts"]


def preflight(machines: Machines, *more: str) -> tuple[int, dict[str, Any]]:
    """How it ends on n1, for n10 and n9 and `more` hosts, and what it prints."""
    began = time.monotonic()
    done = machines["n1"].run(*WORDS, ",".join(["n10", "n9", *more]))
    assert time.monotonic() - began < LONGEST_S + STARTING_S
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def lines_of(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Host, severity and what of each problem."""
    return [(one["host"], one["severity"], one["what"]) for one in found["problems"]]


def test_nothing_is_wrong_with_hosts_that_are_alike(machines: Machines) -> None:
    code, found = preflight(machines)
    assert (code, found["problems"]) == (0, [])
    for name, host in zip(("n10", "n9"), found["hosts"], strict=True):
        assert (host["host"], host["launcher"], host["fault"]) == (name, "ssh", None)
        assert host["facts"]["hostname"] == name
        assert host["address"] == {"name": INTERFACE, "address": machines[name].address}
        assert host["unreached"] == {}
    assert found["hosts"][0]["facts"]["names"] == {"n9": [machines["n9"].address]}


def test_nothing_is_left_on_hosts_and_no_port_stays_open(machines: Machines) -> None:
    before = machines["n9"].listening()
    preflight(machines)
    assert machines["n9"].listening() == before
    assert machines["n9"].processes(containing="ditplan") == []


Planted = Callable[[Machines], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def written(machine: Machine, path: str, change: Callable[[str], str]) -> Iterator[None]:
    """A file of a machine, changed for a while."""
    before = machine.path(path).read_text()
    machine.write(path, change(before))
    try:
        yield
    finally:
        machine.write(path, before)


@contextlib.contextmanager
def covered(machine: Machine, path: str, *mount: str) -> Iterator[None]:
    """Something else in place of a file or folder, on one machine and for a while."""
    machine.must("mount", *mount, path)
    try:
        yield
    finally:
        machine.must("umount", "--lazy", path)


def known_hosts(change: Callable[[str], str]) -> Planted:
    return lambda machines: written(machines["n1"], f"{HOME}/.ssh/known_hosts", change)


def without_n9(text: str) -> str:
    return "".join(line for line in text.splitlines(True) if not line.startswith("n9,"))


def with_the_key_of_n10(text: str) -> str:
    n10 = next(line for line in text.splitlines(True) if line.startswith("n10,"))
    return without_n9(text) + "n9 " + n10.partition(" ")[2]


@contextlib.contextmanager
def without_server(machines: Machines) -> Iterator[None]:
    for process in machines["n9"].processes(containing="sshd"):
        process.kill()
    while machines["n9"].listening():
        time.sleep(0.02)
    try:
        yield
    finally:
        start_server(machines["n9"])


@contextlib.contextmanager
def without_link(machines: Machines) -> Iterator[None]:
    machines["n9"].set_link("down")
    try:
        yield
    finally:
        machines["n9"].set_link("up")


@contextlib.contextmanager
def firewall(machines: Machines) -> Iterator[None]:
    """What n10 sends gets lost before n9; n1 is let through."""
    rule = ("ip", "rule")
    # what is the machine's own is looked up first otherwise
    machines["n9"].must(*rule, "add", "pref", "100", "lookup", "local")
    source = ("from", machines["n10"].address, "iif", INTERFACE)
    machines["n9"].must(*rule, "add", "pref", "10", *source, "blackhole")
    machines["n9"].must(*rule, "del", "pref", "0")
    try:
        yield
    finally:
        machines["n9"].must(*rule, "add", "pref", "0", "lookup", "local")
        machines["n9"].must(*rule, "del", "pref", "10")
        machines["n9"].must(*rule, "del", "pref", "100")


def other_sources(machines: Machines) -> contextlib.AbstractContextManager[None]:
    file = ROOT / "profiles/bounds.py"
    text = file.read_text() + "\n"
    return covered(machines["n9"], str(file), "--bind", str(copied(machines["n9"], file, text)))


def other_torch(machines: Machines) -> contextlib.AbstractContextManager[None]:
    files = importlib.metadata.files("torch") or []
    [file] = [Path(str(one.locate())) for one in files if one.name == "METADATA"]
    version = importlib.metadata.version("torch")
    text = file.read_text().replace(f"\nVersion: {version}\n", "\nVersion: 2.9.0+cpu\n", 1)
    return covered(machines["n9"], str(file), "--bind", str(copied(machines["n9"], file, text)))


def copied(machine: Machine, file: Path, text: str) -> Path:
    """Where a machine finds the changed copy of a file."""
    place = f"/tmp/changed/{file.name}"
    machine.write(place, text)
    return Path(place)


@contextlib.contextmanager
def full_disk(machines: Machines) -> Iterator[None]:
    """A small /tmp and /var/tmp, with what sshd needs in it."""
    machine = machines["n9"]
    with covered(machine, "/mnt", "-t", "tmpfs", "-o", "size=512k", "tmpfs"):
        machine.must("mkdir", "-p", f"/mnt{HOME}")
        machine.must("cp", "-a", "/tmp/sshd", "/mnt/tmp")
        machine.must("cp", "-a", f"{HOME}/.ssh", f"/mnt{HOME}")
        small = ("--bind", "/mnt/tmp")
        with covered(machine, "/var/tmp", *small), covered(machine, "/tmp", *small):
            yield


def no_python(machines: Machines) -> contextlib.AbstractContextManager[None]:
    return covered(machines["n9"], str(Path(sys.prefix, "bin")), "-t", "tmpfs", "tmpfs")


def another_login(machines: Machines) -> contextlib.AbstractContextManager[None]:
    return written(machines["n9"], f"{HOME}/.ssh/authorized_keys", lambda _: "")


# how it is planted on n9, and words of the line: one of these
FAULTS: dict[str, tuple[Planted, *tuple[str, ...]]] = {
    "unknown host key": (known_hosts(without_n9), "its host key isn't known here; run `ssh n9`"),
    "changed host key": (
        known_hosts(with_the_key_of_n10),
        f'forget the old key by `ssh-keygen -f "{HOME}/.ssh/known_hosts" -R "n9"`',
    ),
    "no key": (another_login, "it lets nobody in with the keys that there are"),
    "no sshd": (without_server, "nothing listens at port 22 of n9; start sshd there"),
    # which of both it is depends on how long ago n9 was heard of
    "link down": (without_link, "there is no way to it (no route to host)", "no answer in time"),
    "no Python": (no_python, f"it has no {sys.executable}; Python and ditplan must lie at the"),
    "other sources": (other_sources, "commands and ranks must be the same code"),
    "another torch": (other_torch, "torch is 2.9.0+cpu, and"),
    "full disk": (full_disk, "nothing can be written to /tmp, where logs go: No space left"),
}


QUICK = ("unknown host key", "another torch", "full disk")


@pytest.mark.parametrize(
    "fault",
    [pytest.param(fault, marks=[] if fault in QUICK else pytest.mark.thorough) for fault in FAULTS],
)
def test_a_fault_is_told_with_its_host(machines: Machines, fault: str) -> None:
    planted, *words = FAULTS[fault]
    with planted(machines):
        code, found = preflight(machines)
    assert code == 3
    fatal = [line for line in lines_of(found) if line[1] != "warning"]
    assert [host for host, _, _ in fatal] == ["n9"]
    assert any(text in fatal[0][2] for text in words), fatal
    assert found["hosts"][0]["fault"] is None
    assert found["hosts"][0]["facts"] is not None


def test_a_firewall_between_two_hosts_is_told_with_both(machines: Machines) -> None:
    with firewall(machines):
        code, found = preflight(machines)
    assert code == 3
    at = {name: f"{machines[name].address} ({INTERFACE})" for name in ("n9", "n10")}
    why = "no answer within 3 s; let the hosts' firewalls pass all ports between them, or"
    assert sorted(what.partition(" choose")[0] for _, _, what in lines_of(found)) == [
        f"a port that it opens at {at[name]} can't be reached from {other}: {why}"
        for name, other in (("n10", "n9"), ("n9", "n10"))
    ]


@pytest.mark.parametrize(
    "command",
    [
        ("profile", "--out", "/tmp/c.json"),
        ("tune", "--model", "sd3-tiny", "--out", "/tmp/plan.json"),
    ],
)
def test_commands_start_no_rank_on_hosts_that_differ(
    machines: Machines, command: tuple[str, ...]
) -> None:
    with other_torch(machines):
        words = [sys.executable, "-m", "ditplan", *command, "--hosts", "n10:1,n9:1"]
        done = machines["n1"].run(*words)
    assert done.returncode == 3, done.stderr
    assert "error: n9: torch is 2.9.0+cpu, and" in done.stderr
    assert "Traceback" not in done.stderr
    assert machines["n10"].processes(containing="ditplan") == []


def test_after_all_faults_the_hosts_are_as_they_were(machines: Machines) -> None:
    assert preflight(machines)[0] == 0


def test_a_name_that_leads_nowhere_is_told(machines: Machines) -> None:
    code, found = preflight(machines, "n77")
    assert code == 3
    assert [line[:2] for line in lines_of(found)] == [("n77", "cluster")]
    assert "finds no address for n77" in lines_of(found)[0][2]


def test_debians_address_for_the_own_name_does_no_harm(machines: Machines) -> None:
    with written(machines["n9"], "/etc/hosts", lambda text: f"127.0.1.1 n9\n{text}"):
        code, found = preflight(machines)
    assert (code, found["problems"]) == (0, [])
    assert found["hosts"][1]["address"]["address"] == machines["n9"].address


def test_a_name_that_leads_back_is_warned_of(machines: Machines) -> None:
    wrong = f"127.0.0.1 n9\n{machines['n10'].address} n10\n"
    with written(machines["n10"], "/etc/hosts", lambda _: wrong):
        code, found = preflight(machines)
    assert code == 0
    [(_, severity, what)] = lines_of(found)
    assert severity == "warning"
    assert what.startswith("names of hosts that lead back to where they are asked for: n9 (on n10)")


@pytest.mark.skipif(shutil.which("srun") is None, reason="needs Slurm")
def test_hosts_of_a_job_are_asked_by_srun(slurm_machines: Machines) -> None:
    words = ["salloc", "--quiet", "-N2", *WORDS, "n10,n9"]
    done = slurm_machines["n1"].start(words, environment=slurm.ENVIRONMENT).finished(60)
    found = json.loads(done.stdout)
    assert (done.returncode, found["problems"]) == (0, [])
    assert [host["launcher"] for host in found["hosts"]] == ["srun", "srun"]
    assert [host["facts"]["hostname"] for host in found["hosts"]] == ["n10", "n9"]
