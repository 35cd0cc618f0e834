"""What `preflight` says of hosts on which something is wrong."""

import time

import pytest

from tests.cluster import jobs
from tests.cluster.faults import FAULTS, Fault
from tests.cluster.jobs import Result, ditplan
from tests.cluster.machines import HOSTS, Machines

pytestmark = pytest.mark.cluster

WITHIN_S = 15.0


def preflight(machines: Machines, hosts: str = jobs.HOSTS_FILE) -> Result:
    """Runs it on n1; nothing of it is left."""
    jobs.write_hosts(machines, hosts)
    began = time.monotonic()
    result = ditplan(machines, "preflight", "--hosts", "hosts.txt").result()
    assert time.monotonic() - began < WITHIN_S
    assert jobs.leftovers(machines) == []
    return result


def test_hosts_that_fit_each_other_pass(machines: Machines) -> None:
    result = preflight(machines)
    assert result.exit_code == 0, result.errors
    assert result.errors == ""
    assert all(host in result.output for host in HOSTS)


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault.before], ids=str)
def test_what_is_wrong_before_a_command_starts_is_told(machines: Machines, fault: Fault) -> None:
    assert fault.before is not None and fault.after is not None
    fault.before(machines)
    try:
        result = preflight(machines)
    finally:
        fault.after(machines)
    assert result.exit_code == fault.exit_code, result.errors
    assert [word for word in fault.words if word not in result.line] == []


@pytest.mark.thorough
def test_a_host_without_a_link_is_named(machines: Machines) -> None:
    machines["n9"].set_link("down")
    try:
        result = preflight(machines)
    finally:
        machines["n9"].set_link("up")
    assert result.exit_code == 3
    assert "n9: no answer" in result.line


def test_a_name_that_leads_nowhere_is_told(machines: Machines) -> None:
    result = preflight(machines, "n10 slots=2\nn77 slots=2\n")
    assert result.exit_code == 3
    assert "n77: no such host" in result.line
