"""Which hosts a command uses that names them, names none, or runs in a scheduler's job."""

from pathlib import Path

import pytest

from ditplan.command.hosts import asked_hosts
from ditplan.command.options import HostOptions
from ditplan.profiles.errors import InputError
from ditplan.profiles.host import Host
from ditplan.profiles.host_choice import ChosenHost, HostChoice

VARIABLES = {"SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "PBS_NODEFILE", "LSB_MCPU_HOSTS"}
VARIABLES |= {"LSB_DJOB_HOSTFILE"}


@pytest.fixture(autouse=True)
def outside_of_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """No scheduler's variable, wherever these tests run."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def asked(
    options: HostOptions, *, is_on_paper: bool = False
) -> tuple[HostChoice | None, list[str]]:
    """The hosts, and what was said."""
    said: list[str] = []
    return asked_hosts(options, said.append, is_on_paper=is_on_paper), said


def test_without_a_job_none_is_this_machine() -> None:
    assert asked(HostOptions()) == (None, [])


def test_a_job_s_hosts_are_taken_and_told_where_none_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LSB_MCPU_HOSTS", "n1 2 n2 4")
    choice, said = asked(HostOptions(exclude="n1:0", interface="ib0"))
    assert choice == HostChoice(
        (ChosenHost(Host("n1", slots=1), (1,)), ChosenHost(Host("n2", slots=4))), "ib0"
    )
    assert said == ["hosts of the job that this runs in: n1 slots=2, n2 slots=4"]


def test_named_hosts_go_before_those_of_a_job(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2]")
    file = tmp_path / "hosts"
    file.write_text("a:2\na\n")
    choice, said = asked(HostOptions(hosts="m[1-2]:8"))
    assert choice == HostChoice.of([Host("m1", slots=8), Host("m2", slots=8)])
    assert said == []
    choice, said = asked(HostOptions(hosts=str(file), hosts_format="mpich"))
    assert choice == HostChoice.of([Host("a", slots=3)])


def test_a_plan_on_paper_has_nothing_to_do_with_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2]")
    assert asked(HostOptions(), is_on_paper=True) == (None, [])
    with pytest.raises(InputError, match="include=n1 is a choice among hosts; give hosts"):
        asked(HostOptions(include="n1"), is_on_paper=True)


def test_of_many_hosts_the_first_are_told() -> None:
    many = HostChoice.of(Host(f"n{number}") for number in range(10))
    assert str(many) == "n0, n1, n2, n3, n4, n5, n6, n7 and 2 more"
