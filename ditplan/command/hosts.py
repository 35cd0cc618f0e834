"""Which hosts a command uses: those that it names, those of a scheduler's job, or this machine."""

import os
from collections.abc import Callable, Mapping
from dataclasses import fields

from ditplan.command.options import HostOptions
from ditplan.command.terminal import Terminal
from ditplan.profiles.errors import InputError, Setting
from ditplan.profiles.host_choice import HostChoice, choose_hosts
from ditplan.profiles.hosts import load_hosts
from ditplan.profiles.hosts_of_job import hosts_of_job
from ditplan.profiles.plan import ExecutionPlan


def asked_hosts(
    options: HostOptions, say: Callable[[str], None], *, is_on_paper: bool = False
) -> HostChoice | None:
    """The hosts that take part; None is this machine. Says so where they are those of a job.

    Raises:
        InputError: a wrong line or host, in the file or of the job; a choice among hosts that there
            isn't, or without any.
    """
    environment: Mapping[str, str] = {} if is_on_paper else os.environ
    if options.hosts is not None:
        hosts = load_hosts(options.hosts, options.hosts_format)
    elif options.hosts_format != "ditplan":
        wrong = Setting("hosts_format", options.hosts_format)
        raise InputError(wrong, " says what a file is like; give ", Setting("hosts"))
    else:
        found = hosts_of_job(environment)
        if found is None:
            _refuse_choice(options)
            return None
        hosts = found
        say(f"hosts of the job that this runs in: {HostChoice.of(hosts)}")
    return HostChoice(choose_hosts(hosts, options.include, options.exclude), options.interface)


def show_what_would_run(
    terminal: Terminal,
    hosts: HostChoice | None,
    gpus: int | None = None,
    needed: ExecutionPlan | None = None,
) -> None:
    """Shows what would run where, and starts no rank.

    Raises:
        InputError: too few slots, or an interface that can't be used. ClusterError: hosts that
            can't be reached.
    """
    from ditplan.running import what_would_run

    found = what_would_run(hosts, gpus, needed)
    terminal.show(str(found))
    terminal.finish(found.to_json())


def refuse_hosts(options: HostOptions, setting: Setting, why: str) -> None:
    """Refuses every choice of hosts beside a setting that has no use for hosts.

    Raises:
        InputError: names what was given.
    """
    for field in fields(options):
        value = getattr(options, field.name)
        if value != field.default:
            # no more than the name of a switch or of a list of hosts
            is_short = field.name in {"hosts_format", "interface"}
            wrong = Setting(field.name, value if is_short else None)
            raise InputError(setting, why, "; leave out ", wrong)


def refuse_measuring(setting: Setting, *, measure: int | None, sampler: str, refresh: bool) -> None:
    """Refuses what is about measuring beside a setting that plans on paper.

    Raises:
        InputError: names what was given.
    """
    given = {
        Setting("measure", measure): bool(measure),
        Setting("sampler", sampler): sampler != "planner",
        Setting("refresh"): refresh,
    }
    for wrong, is_given in given.items():
        if is_given:
            raise InputError(setting, " plans on paper; leave out ", wrong)


def _refuse_choice(options: HostOptions) -> None:
    for name in ("include", "exclude", "interface"):
        value = getattr(options, name)
        if value is not None:
            wrong = Setting(name, value)
            raise InputError(wrong, " is a choice among hosts; give ", Setting("hosts"))
