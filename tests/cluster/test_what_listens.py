"""Where the ranks of a job on two hosts can be reached, and by what they end."""

import signal

import pytest

from tests.cluster import jobs, secure_shell
from tests.cluster.jobs import ditplan
from tests.cluster.machines import HOSTS, Machine, Machines

pytestmark = [pytest.mark.cluster, pytest.mark.thorough]


def test_ranks_listen_on_the_cluster_s_interface_alone(machines: Machines) -> None:
    jobs.write_hosts(machines)
    jobs.write_plan(machines, "endless.json", steps=100_000)
    job = ditplan(machines, *jobs.run("endless.json", "picture.png"))
    job.denoises()
    for name in HOSTS:
        assert addresses(machines[name]) == {machines[name].address}
    assert addresses(machines["n1"]) == set()
    job.command.process.send_signal(signal.SIGTERM)
    assert job.result().exit_code == 128 + signal.SIGTERM
    jobs.wait_for_no_leftovers(machines)
    assert jobs.kept_folders(machines) == []


def addresses(machine: Machine) -> set[str]:
    """Those on which anything but sshd listens."""
    return {address for address, port in machine.listening() if port != secure_shell.PORT}
