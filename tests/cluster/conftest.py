"""Machines for the tests of this folder; where there can't be any, tests say so and are skipped."""

import os
import sys
from collections.abc import Iterator

import pytest

from tests.cluster import secure_shell, slurm
from tests.cluster.machines import HOSTS, Machines, missing_programs


def require_machines(*programs: str) -> None:
    """Skips the test where machines with these programs can't be made, and says why."""
    if sys.platform != "linux":
        pytest.skip("machines of the test cluster are namespaces of Linux")
    if os.geteuid() != 0:
        pytest.skip("machines of the test cluster need root")
    missing = missing_programs(*programs)
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    """n1, where commands are typed, and n10 and n9, all reached from there by ssh."""
    require_machines(*secure_shell.PROGRAMS)
    with secure_shell.machines_with_ssh() as machines:
        yield machines


@pytest.fixture(scope="module")
def slurm_machines() -> Iterator[Machines]:
    """n1, where Slurm's controller runs and jobs are sent from, and its nodes n10 and n9."""
    require_machines(*slurm.PROGRAMS)
    with Machines(("n1", *HOSTS)) as machines:
        slurm.start_slurm(machines["n1"], [machines[name] for name in HOSTS])
        yield machines
