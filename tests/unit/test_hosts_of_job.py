"""The hosts of a scheduler's job, and which of them are chosen."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditplan.profiles.errors import InputError
from ditplan.profiles.host import Host
from ditplan.profiles.host_choice import ChosenHost, choose_hosts
from ditplan.profiles.hosts_of_job import hosts_of_job

BARE = (Host("n1"), Host("n2"))
TWO, ONE = (Host("n1", slots=2), Host("n2", slots=2)), (Host("n2", slots=1),)

SHELL = {
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_STEP_NODELIST": "n1",
    "SLURM_STEP_ID": "4294967290",
    "SLURM_STEP_TASKS_PER_NODE": "1",
}


def tasks(per_node: str) -> dict[str, str]:
    """What Slurm 22.05 sets where a number of tasks was asked for."""
    return {"SLURM_TASKS_PER_NODE": per_node, "SLURM_NTASKS": "4"}


@pytest.mark.parametrize(
    ("environment", "hosts"),
    [
        ({}, None),
        ({"SLURM_JOB_NODELIST": "", "PBS_NODEFILE": ""}, None),
        ({"SLURM_JOB_NODELIST": "n[1-2]"}, BARE),
        ({"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_TASKS_PER_NODE": "1(x2)"}, BARE),
        ({"SLURM_JOB_NODELIST": "n[1-2]", **tasks("2(x2)")}, TWO),
        (
            {"SLURM_JOB_NODELIST": "n[01-03],login", **tasks("2(x3),1")},
            (*(Host(f"n0{i}", slots=2) for i in (1, 2, 3)), Host("login", slots=1)),
        ),
        # inside a step the job's own list is still there
        (
            {
                "SLURM_JOB_NODELIST": "n[1-2]",
                "SLURM_NODELIST": "n[1-2]",
                "SLURM_STEP_NODELIST": "n2",
                "SLURM_TASKS_PER_NODE": "2(x2)",
                "SLURM_STEP_TASKS_PER_NODE": "1",
            },
            ONE,
        ),
        ({"SLURM_STEP_NODELIST": "n2", **tasks("1")}, ONE),
        # the shell of salloc, as a Slurm with use_interactive_step starts it on the first node
        ({**SHELL, "SLURM_TASKS_PER_NODE": "1(x2)"}, BARE),
        ({**SHELL, **tasks("2(x2)")}, TWO),
        ({"LSB_MCPU_HOSTS": "n1 2 n2 2"}, TWO),
        ({"LSB_MCPU_HOSTS": "n1 2 n2 2", "LSB_DJOB_HOSTFILE": "/nowhere"}, TWO),
    ],
)
def test_a_job_has_the_hosts_that_its_scheduler_says(
    environment: dict[str, str], hosts: tuple[Host, ...] | None
) -> None:
    assert hosts_of_job(environment) == hosts


@pytest.mark.parametrize("variable", ["PBS_NODEFILE", "LSB_DJOB_HOSTFILE"])
def test_a_scheduler_s_file_has_a_line_for_each_slot(variable: str, tmp_path: Path) -> None:
    file = tmp_path / "nodes"
    file.write_text("n1\nn1\nn2\nn2\n")
    assert hosts_of_job({variable: str(file)}) == TWO
    file.write_text("n1\n;\n")
    with pytest.raises(InputError, match=rf"^{variable}: {file}: line 2: ';' is not a host's"):
        hosts_of_job({variable: str(file)})
    with pytest.raises(InputError, match=f"the file of hosts that {variable} names"):
        hosts_of_job({variable: str(tmp_path / "gone")})


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"SLURM_JOB_NODELIST": "n[1-3]", **tasks("2(x2)")},
            r"SLURM_TASKS_PER_NODE is '2\(x2\)', for 2 nodes, and SLURM_JOB_NODELIST names 3",
        ),
        ({"SLURM_JOB_NODELIST": "n[1-2"}, "SLURM_JOB_NODELIST: the brackets of"),
        ({"SLURM_JOB_NODELIST": "n[2,1,2]"}, "SLURM_JOB_NODELIST: node 3: n2 stands in node 1"),
        ({"SLURM_JOB_NODELIST": "-n"}, "SLURM_JOB_NODELIST: '-n' is not a host's name"),
        ({"SLURM_JOB_NODELIST": "me@n"}, "SLURM_JOB_NODELIST: 'me@n' is not a host's name"),
        (
            {"SLURM_JOB_NODELIST": "n", **tasks("2x3")},
            "SLURM_TASKS_PER_NODE: '2x3' is no number of tasks",
        ),
        (
            {"SLURM_JOB_NODELIST": "n", **tasks("1(x99999)")},
            "SLURM_TASKS_PER_NODE: the repetition is '99999'",
        ),
        ({"LSB_MCPU_HOSTS": "a 4 b"}, "LSB_MCPU_HOSTS is 'a 4 b'; it is as in `a 4 b 2`"),
        ({"LSB_MCPU_HOSTS": "a b"}, "LSB_MCPU_HOSTS: slots of 'a' is 'b'"),
        ({"LSB_MCPU_HOSTS": "a 1 a 1"}, "LSB_MCPU_HOSTS: host 2: a stands in host 1 already"),
        (
            {"SLURM_JOB_NODELIST": "n", "LSB_MCPU_HOSTS": "a 1"},
            "SLURM_JOB_NODELIST and LSB_MCPU_HOSTS are set",
        ),
    ],
)
def test_what_a_scheduler_says_otherwise_is_refused_by_its_variable(
    environment: dict[str, str], message: str
) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        hosts_of_job(environment)


HOSTS = (Host("a", slots=4), Host("b", slots=2), Host("c"), Host("::1", slots=2))


@pytest.mark.parametrize(
    ("include", "exclude", "chosen"),
    [
        (None, None, tuple(ChosenHost(host) for host in HOSTS)),
        # in the order of the file, as DeepSpeed has it
        ("b@a:2,0", None, (ChosenHost(Host("a", slots=2), (0, 2)), ChosenHost(HOSTS[1]))),
        ("C:7", None, (ChosenHost(Host("c", slots=1), (7,)),)),
        ("[::1]:1", None, (ChosenHost(Host("::1", slots=1), (1,)),)),
        (None, "a@c@[::1]", (ChosenHost(HOSTS[1]),)),
        (None, "a:0,1,3@b:0,1@c@[::1]", (ChosenHost(Host("a", slots=1), (2,)),)),
    ],
)
def test_hosts_and_devices_are_chosen(
    include: str | None, exclude: str | None, chosen: tuple[ChosenHost, ...]
) -> None:
    assert choose_hosts(HOSTS, include, exclude) == chosen


@pytest.mark.parametrize(
    ("include", "exclude", "message"),
    [
        ("a", "b", "include and exclude exclude each other"),
        ("x", None, "include: there is no host 'x'; there are a, b, c, ::1"),
        ("", None, "include: '' is no host with devices"),
        ("a@", None, "include: '' is no host with devices"),
        ("a:4", None, "include: a has no device '4'; its devices are 0 to 3"),
        ("a:", None, "include: a has no device ''"),
        ("a:-1", None, "include: a has no device '-1'"),
        ("a:1,1", None, "include: a device of a is named twice"),
        ("a:1@a:2", None, "include: 'a' is named twice"),
        ("a:1:2", None, "include: 'a:1:2' is no host with devices"),
        (None, "c:0", "exclude: how many devices c has isn't said"),
        (None, "a@b@c@[::1]", "leaves no device of any host"),
    ],
)
def test_a_wrong_choice_is_refused_in_a_line(
    include: str | None, exclude: str | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        choose_hosts(HOSTS, include, exclude)


@given(
    st.none() | st.text("abc:,@[]0129 \n\0x", max_size=20),
    st.none() | st.text("abc:,@[]0129 \n\0x", max_size=20),
)
def test_any_choice_is_taken_or_refused_in_one_line(
    include: str | None, exclude: str | None
) -> None:
    try:
        chosen = choose_hosts(HOSTS, include, exclude)
    except InputError as error:
        assert "\n" not in str(error)
        return
    assert chosen
    order = [host.name for host in HOSTS]
    places = [order.index(one.host.name) for one in chosen]
    assert places == sorted({*places})
    for one in chosen:
        if one.devices is not None:
            assert len({*one.devices}) == len(one.devices) == one.host.slots
