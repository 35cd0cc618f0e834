"""Machines for the tests of this folder; where there can't be any, tests say so and are skipped."""

import os
import sys
from collections.abc import Iterator

import pytest

from tests.cluster import secure_shell, slurm
from tests.cluster.machines import Machines, missing_programs

FILE_ORDER = ("n10", "n9")
"""The order of hosts files, which isn't that of the names."""


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
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """n1, where commands are typed, and n10 and n9, all reached from there by ssh."""
    require_machines(*secure_shell.PROGRAMS)
    with Machines(("n1", *FILE_ORDER), tmp_path_factory.mktemp("machines")) as machines:
        secure_shell.let_in(machines["n1"], machines)
        for machine in machines:
            secure_shell.start_server(machine)
        yield machines


@pytest.fixture(scope="module")
def slurm_machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """n1, where Slurm's controller runs and jobs are sent from, and its nodes n10 and n9."""
    require_machines(*slurm.PROGRAMS)
    with Machines(("n1", *FILE_ORDER), tmp_path_factory.mktemp("slurm")) as machines:
        slurm.start_slurm(machines["n1"], [machines[name] for name in FILE_ORDER])
        yield machines
