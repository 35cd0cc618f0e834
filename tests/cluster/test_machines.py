"""The machines that the other tests of this folder stand on."""

import sys

import pytest

import ditplan
from tests.cluster import slurm
from tests.cluster.machines import INTERFACE, Machines

pytestmark = pytest.mark.cluster

RECEIVER = """
import socket, time
server = socket.create_server(("", 0))
print(server.getsockname()[1], flush=True)
for _ in range(3):
    connection, _ = server.accept()
    began, size = time.monotonic(), 0
    while data := connection.recv(1 << 20):
        size += len(data)
    print(8 * size / (time.monotonic() - began))
"""
SENDER = """
import socket, sys
for _ in range(3):
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), 30) as connection:
        connection.sendall(bytes(8_000_000))
"""


def test_each_machine_has_its_own_name_files_and_processes(machines: Machines) -> None:
    assert machines["n9"].must("hostname").strip() == "n9"
    machines["n9"].must("touch", "/tmp/only-here")
    assert machines["n10"].run("ls", "/tmp/only-here").returncode != 0
    assert machines["n9"].must("ps", "-e", "-o", "comm=").split()[1:] == ["sshd", "ps"]


def test_the_checkout_and_its_interpreter_are_on_each_machine(machines: Machines) -> None:
    where = machines["n9"].must(
        sys.executable, "-P", "-c", "import ditplan as d; print(d.__file__)"
    )
    assert where.strip() == ditplan.__file__


def test_ssh_goes_from_the_first_to_the_others_and_not_back(machines: Machines) -> None:
    there = machines["n1"].must("ssh", "-o", "BatchMode=yes", "n10", "hostname; pwd")
    assert there.split() == ["n10", "/tmp/home"]
    back = machines["n10"].run("ssh", "-o", "BatchMode=yes", "n1", "true")
    assert back.returncode == 255


def test_a_limited_link_carries_its_rate(machines: Machines) -> None:
    machines["n10"].limit("100mbit")
    try:
        assert measured_rate(machines) == pytest.approx(100e6, rel=0.2)
    finally:
        machines["n10"].must("tc", "qdisc", "del", "dev", INTERFACE, "root")


def measured_rate(machines: Machines) -> float:
    """Bits per second of payload from n10 to n9, by TCP: the best of three."""
    receiver = machines["n9"].start([sys.executable, "-c", RECEIVER])
    assert receiver.popen.stdout is not None
    port = receiver.popen.stdout.readline().strip()
    machines["n10"].must(sys.executable, "-c", SENDER, machines["n9"].address, port)
    return max(float(rate) for rate in receiver.finished(60).stdout.split())


def test_a_job_of_slurm_reaches_each_node(slurm_machines: Machines) -> None:
    words = ["salloc", "--quiet", "-N2", "srun", "-l", "hostname"]
    said = slurm_machines["n1"].start(words, environment=slurm.ENVIRONMENT).finished(60)
    assert sorted(line.split()[1] for line in said.stdout.splitlines()) == ["n10", "n9"]
