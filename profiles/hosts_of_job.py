"""The hosts that a scheduler gave a job, from its environment: Slurm's, PBS's or LSF's."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ditplan.profiles.bounds import MOST_RANKS, MOST_SLOTS
from ditplan.profiles.errors import InputError
from ditplan.profiles.files import path_text, read_text
from ditplan.profiles.host import Host, HostTable, quoted, whole_number
from ditplan.profiles.hosts_formats import FORMATS, HostsFormat
from ditplan.profiles.node_list import expand, split_list

Environment = Mapping[str, str]
INTERACTIVE_STEP = "4294967290"
"""The number of the step in which Slurm runs the shell of `salloc`, where it is set up so
(`use_interactive_step`; slurm.h's SLURM_INTERACTIVE_STEP)."""
TASKS = re.compile(r"([0-9]{1,5})(?:\(x([0-9]{1,5})\))?")


@dataclass(frozen=True)
class Scheduler:
    """Its variables in a job, of which the first that is set counts, and how that is read."""

    variables: tuple[str, ...]
    read: Callable[[str, Environment], tuple[Host, ...]]


def hosts_of_job(environment: Environment) -> tuple[Host, ...] | None:
    """The hosts of the job that this runs in, in the scheduler's order; None outside of jobs.

    Inside a step of Slurm's they are the step's: SLURM_NODELIST and SLURM_JOB_NODELIST still name
    all of the job's there. Slots are those that were asked for; of Slurm's nodes they aren't known
    where only nodes were.

    Raises:
        InputError: two schedulers claim the job, or what one says can't be understood; names the
            variable.
    """
    found = [
        (scheduler, next(name for name in scheduler.variables if environment.get(name)))
        for scheduler in SCHEDULERS
        if any(environment.get(name) for name in scheduler.variables)
    ]
    if len(found) > 1:
        names = " and ".join(variable for _, variable in found)
        raise InputError(f"{names} are set; unset what isn't of the job that this runs in")
    for scheduler, variable in found:
        return scheduler.read(variable, environment)
    return None


def nodes_of(text: str, where: str) -> tuple[Host, ...]:
    """The nodes of a list as Slurm writes it, such as `n[01-04,7],login`.

    Raises:
        InputError: a list that isn't clear, or a node that is named twice.
    """
    table = HostTable(where)
    try:
        names = [name for word in split_list(text) for name in expand(word)]
        hosts = [Host(name) for name in names]
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    for number, host in enumerate(hosts, start=1):
        table.add(host, f"node {number}", "a job has each node once")
    return table.finished("`n[01-04]`")


def _of_slurm(variable: str, environment: Environment) -> tuple[Host, ...]:
    job = "SLURM_JOB_NODELIST"
    if environment.get("SLURM_STEP_ID") == INTERACTIVE_STEP and environment.get(job):
        # that step is on the first node, and what is typed there is for all of the job's
        variable = job
    hosts = nodes_of(environment[variable], variable)
    names = [] if variable == job else ["SLURM_STEP_TASKS_PER_NODE"]
    # where nodes alone were asked for, Slurm says one task on each: nobody's wish
    names += ["SLURM_TASKS_PER_NODE"] if environment.get("SLURM_NTASKS") else []
    name = next((name for name in names if environment.get(name)), None)
    if name is None:
        return hosts
    counts = _tasks_per_node(environment[name], name)
    if len(counts) != len(hosts):
        raise InputError(
            f"{name} is {quoted(environment[name])}, for {len(counts)} nodes, and {variable} names "
            f"{len(hosts)}; they must be of the same job or step"
        )
    table = HostTable(name)
    for host, count in zip(hosts, counts, strict=True):
        table.put(replace(host, slots=count))
    return table.finished("`2(x3),1`")


def _tasks_per_node(text: str, where: str) -> list[int]:
    """Such as `2(x3),1` for 2, 2, 2 and 1."""
    counts: list[int] = []
    for part in text.split(","):
        match = TASKS.fullmatch(part)
        if match is None:
            raise InputError(f"{where}: {quoted(part)} is no number of tasks; it is as in 2(x3),1")
        count = whole_number(f"{where}: the number of tasks", match[1], MOST_SLOTS)
        counts += [count] * whole_number(f"{where}: the repetition", match[2] or "1", MOST_RANKS)
        if len(counts) > MOST_RANKS:
            raise InputError(f"{where}: is for more than {MOST_RANKS} nodes")
    return counts


def _of_file(form: HostsFormat) -> Callable[[str, Environment], tuple[Host, ...]]:
    def read(variable: str, environment: Environment) -> tuple[Host, ...]:
        path = Path(environment[variable])
        text = read_text(path, f"the file of hosts that {variable} names")
        lines = enumerate(text.split("\n"), start=1)
        return FORMATS[form].parse(lines, f"{variable}: {path_text(path)}")

    return read


def _of_lsf(variable: str, environment: Environment) -> tuple[Host, ...]:
    """`host slots host slots`, or a file of a host a line."""
    if variable != "LSB_MCPU_HOSTS":
        return _of_file("lsf")(variable, environment)
    words = environment[variable].split()
    if len(words) % 2:
        raise InputError(f"{variable} is {quoted(environment[variable])}; it is as in `a 4 b 2`")
    table = HostTable(variable)
    for number, (name, count) in enumerate(zip(words[::2], words[1::2], strict=True), start=1):
        slots = whole_number(f"{variable}: slots of {quoted(name)}", count, MOST_SLOTS)
        try:
            host = Host(name, slots=slots)
        except InputError as error:
            raise InputError(f"{variable}: {error}") from None
        table.add(host, f"host {number}", "a job has each host once")
    return table.finished("`a 4 b 2`")


SCHEDULERS = (
    # Slurm, PBS, LSF
    Scheduler(("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"), _of_slurm),
    Scheduler(("PBS_NODEFILE",), _of_file("pbs")),
    Scheduler(("LSB_MCPU_HOSTS", "LSB_DJOB_HOSTFILE"), _of_lsf),
)
