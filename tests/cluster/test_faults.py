"""What goes wrong with a host or a process is named, ends the command, and leaves nothing."""

import pytest

from tests.cluster.faults import FAULTS, Fault, observe
from tests.cluster.machines import Machines

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, id=fault.name, marks=() if number == 0 else pytest.mark.thorough)
        for number, fault in enumerate(FAULTS)
    ],
)
def test_a_fault_is_named_and_nothing_is_left(machines: Machines, fault: Fault) -> None:
    seen = observe(machines, fault)
    assert fault.differences(seen) == [], seen
