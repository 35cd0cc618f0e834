"""Which hosts a command would use, and over which interface: by dry runs on real networks."""

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from tests.cluster import slurm
from tests.cluster.machines import INTERFACE, Machine, Machines

pytestmark = pytest.mark.cluster

WORDS = (sys.executable, "-m", "ditplan", "profile", "--out", "/tmp/c.json", "--dry-run", "--json")
LONGEST_S = 60.0


def dry_run(
    machine: Machine,
    *words: str,
    before: tuple[str, ...] = (),
    environment: Mapping[str, str] | None = None,
) -> tuple[subprocess.CompletedProcess[str], list[dict[str, Any]]]:
    """How it ended, and the hosts that it names."""
    started = machine.start([*before, *WORDS, *words], environment=environment)
    done = started.finished(LONGEST_S)
    assert done.stdout, done.stderr
    return done, json.loads(done.stdout).get("hosts", [])


def told(hosts: list[dict[str, Any]], *fields: str) -> list[tuple[Any, ...]]:
    """Some fields of each host."""
    return [tuple(host[field] for field in fields) for host in hosts]


def test_hosts_follow_the_file_and_listen_where_the_others_reach_them(machines: Machines) -> None:
    n1 = machines["n1"]
    n1.write("/tmp/hosts.txt", "n1 slots=1\nn10 slots=2\nn9 slots=3\n")
    _, hosts = dry_run(n1, "--hosts", "/tmp/hosts.txt", "--include", "n9:0,2@n1@n10:1")
    assert told(hosts, "host", "launcher", "interface", "address") == [
        ("n1", "direct", INTERFACE, machines["n1"].address),
        ("n10", "ssh", INTERFACE, machines["n10"].address),
        ("n9", "ssh", INTERFACE, machines["n9"].address),
    ]
    ranks = [[rank["rank"] for rank in host["ranks"]] for host in hosts]
    assert ranks == [[0], [1], [2, 3]]
    for host in hosts:
        assert host["environment"]["GLOO_SOCKET_IFNAME"] == INTERFACE
        assert machines[host["host"]].processes(containing="ditplan") == []


def test_neither_debian_s_own_name_nor_a_bridge_of_each_host_s_own_is_taken(
    machines: Machines,
) -> None:
    n1, before = machines["n1"], machines["n1"].path("/etc/hosts").read_text()
    both = (n1, machines["n10"])
    try:
        for machine in both:
            machine.must("ip", "link", "add", "docker0", "type", "bridge")
            machine.must("ip", "address", "add", "172.17.0.1/16", "dev", "docker0")
            machine.must("ip", "link", "set", "docker0", "up")
        n1.write(
            "/etc/hosts", f"127.0.0.1 localhost\n127.0.1.1 n1\n{machines['n10'].address} n10\n"
        )
        _, hosts = dry_run(n1, "--hosts", "n1:1,n10:1")
        assert told(hosts, "host", "interface", "address") == [
            ("n1", INTERFACE, n1.address),
            ("n10", INTERFACE, machines["n10"].address),
        ]
        done, _ = dry_run(n1, "--hosts", "n1:1,n10:1", "--interface", "docker0")
        assert done.returncode == 2
        assert "--interface docker0: " in json.loads(done.stdout)["error"]
    finally:
        n1.write("/etc/hosts", before)
        for machine in both:
            machine.run("ip", "link", "del", "docker0")


def test_of_two_networks_that_of_the_names_is_taken_unless_another_is_asked_for(
    machines: Machines,
) -> None:
    pair = (machines["n10"], machines["n9"])
    try:
        # a cable between the two alone
        own = f"--net=/proc/{pair[0].pid}/ns/net"
        cable = ("fast0", "type", "veth", "peer", "name", "fast0", "netns", str(pair[1].pid))
        subprocess.run(["nsenter", own, "ip", "link", "add", *cable], check=True)
        for number, machine in enumerate(pair, start=1):
            machine.must("ip", "address", "add", f"10.78.0.{number}/24", "dev", "fast0")
            machine.must("ip", "link", "set", "fast0", "up")
        _, hosts = dry_run(machines["n1"], "--hosts", "n10:1,n9:1")
        assert told(hosts, "interface") == [(INTERFACE,), (INTERFACE,)]
        _, hosts = dry_run(machines["n1"], "--hosts", "n10:1,n9:1", "--interface", "fast0")
        assert told(hosts, "interface", "address") == [
            ("fast0", "10.78.0.1"),
            ("fast0", "10.78.0.2"),
        ]
    finally:
        for machine in pair:
            machine.run("ip", "link", "del", "fast0")


@pytest.mark.parametrize(
    ("asked", "slots"), [(("-N2",), None), (("-N2", "-n3"), [2, 1]), (("-N1", "-n2"), [2])]
)
def test_a_job_s_nodes_are_the_hosts_where_none_are_named(
    slurm_machines: Machines, asked: tuple[str, ...], slots: list[int] | None
) -> None:
    done, hosts = dry_run(
        slurm_machines["n1"],
        before=("salloc", "--quiet", *asked),
        environment=slurm.ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr
    assert "hosts of the job that this runs in: n9" in done.stderr
    assert [host["launcher"] for host in hosts] == ["srun"] * (1 if asked[0] == "-N1" else 2)
    counts = [len(host["ranks"]) for host in hosts]
    if slots is None:
        # as many as each node has cores
        assert len({*counts}) == 1 <= counts[0]
    else:
        assert counts == slots
