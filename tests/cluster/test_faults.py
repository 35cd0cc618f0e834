"""What goes wrong with a host or a process is named, ends the command, and leaves nothing."""

import pytest

from tests.cluster.faults import FAULTS, Fault, observe
from tests.cluster.machines import Machines

pytestmark = [pytest.mark.cluster, pytest.mark.thorough]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_fault_is_named_and_nothing_is_left(machines: Machines, fault: Fault) -> None:
    seen = observe(machines, fault)
    assert fault.differences(seen) == [], seen
