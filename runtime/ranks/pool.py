"""Starts ranks as processes, sends them functions to run, and ends them all when one fails."""

import contextlib
import json
import os
import pickle
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self, TypeVar

from ditplan.profiles.cluster import DeviceKind
from ditplan.profiles.errors import ClusterError, InputError, PlanWarning
from ditplan.profiles.host import Host
from ditplan.profiles.host_choice import HostChoice
from ditplan.runtime.ranks.agent_link import AgentLink
from ditplan.runtime.ranks.arrangement import HostShare, arranged, devices_on, launches_on
from ditplan.runtime.ranks.by_name import ByName
from ditplan.runtime.ranks.conversation import Conversation, Failure, placed
from ditplan.runtime.ranks.environment import (
    carried,
    environment,
    rank_environment,
    search_path,
)
from ditplan.runtime.ranks.fleet import Fleet, Process
from ditplan.runtime.ranks.frames import NOBODY, Frame, Kind
from ditplan.runtime.ranks.gpu_count import gpus_here
from ditplan.runtime.ranks.messages import GOODBYE, LEAVE_S

LOG_S = 10.0
THIS_MACHINE = HostChoice.of([Host("localhost")])

T = TypeVar("T")


class RankError(ClusterError):
    """Ranks failed; `ranks` are those where it began, the message holds traceback, log or stack."""

    def __init__(self, message: str, ranks: tuple[int, ...], *, were_lost: bool) -> None:
        super().__init__(message)
        self.ranks = ranks
        self.ranks_were_lost = were_lost


class RankPool:
    """Rank processes that are kept for many tasks; a context manager.

    Any failure ends all ranks on all hosts and closes the pool; start a new one then. The ranks'
    standard output and error go to log files on their hosts, which `close()` deletes and a failure
    leaves. `environment` is what ranks of this machine are started with, `arrangement` says which
    ranks each host has.
    """

    def __init__(
        self,
        hosts: HostChoice | None,
        ranks: int,
        device: DeviceKind,
        *,
        start_timeout_s: float = 180.0,
        silence_s: float = 30.0,
    ) -> None:
        """Starts `ranks` ranks and has them join one process group.

        Args:
            hosts: where, and over which interface they talk; None is this machine. Ranks follow
                their order.
            ranks: how many.
            device: "cuda" gives each rank a GPU of its own, "cpu" uses gloo.
            start_timeout_s: how long starting may take.
            silence_s: a rank that shows no sign of life for so long during a task has failed; one
                whose process is stopped sooner. What gives other threads no turn is silence, too:
                compiling took over 10 s so.

        Raises:
            InputError: hosts that can't be used, or more ranks than they have room for.
            RankError: a rank failed while starting.
            ClusterError: the hosts don't fit each other, or don't reach each other.
        """
        if hosts is None:
            _require_room(ranks, device)
        self.device: DeviceKind = device
        self.size = ranks
        own = environment()
        self.environment: Mapping[str, str] = own
        self._silence_s = silence_s
        self._hosts = hosts
        launches = launches_on(hosts or THIS_MACHINE, own)
        self._fleet = Fleet(launches, {**own, "PYTHONPATH": os.pathsep.join(search_path())})
        with self._ending_ranks_on_error():
            self._start(time.monotonic() + start_timeout_s)

    def run(
        self, function: Callable[..., T], *args: object, timeout_s: float, **kwargs: object
    ) -> list[T]:
        """Calls `function(context, *args, **kwargs)` on every rank; returns the results by rank.

        The function must be at the top level of an importable module; it goes by name, its
        arguments and results are pickled. What ranks warn of a plan is warned of here, once.

        Raises:
            InputError: every rank raised one; nothing broke, so the pool stays open.
            RankError: a rank raised, died, went silent or wasn't done in time; the pool is closed.
            ClusterError: the pool was closed before.
            ValueError: the function or its arguments can't be pickled.
        """
        if not self.is_open:
            raise ClusterError("these ranks were ended; start a new RankPool")
        task = _pickled_task(function, args, kwargs)
        with self._ending_ranks_on_error():
            conversation = Conversation(self._fleet, task)
            conversation.listen(timeout_s, self._silence_s)
            for warning in conversation.warnings:
                warnings.warn(warning, PlanWarning, stacklevel=2)
            if conversation.is_refused_by_all:
                refusal = conversation.raised[0].message
            elif conversation.failures:
                name = _path_of(function).rpartition(".")[2]
                raise _rank_error(name, conversation.failures, self._fleet.links)
            else:
                results = conversation.results
                return [pickle.loads(results[number]) for number in range(self.size)]
        raise InputError(refusal)

    @property
    def is_open(self) -> bool:
        """Whether tasks can be run."""
        return self._fleet.is_open

    def logs(self) -> list[str]:
        """What each rank has written to standard output and error so far."""
        found = self._fleet.look(range(self.size), "log", LOG_S)
        return [found.get(number, "") for number in range(self.size)]

    def processes(self) -> list[int]:
        """The process id of each rank, on its host."""
        return [self._fleet.pids[number] for number in range(self.size)]

    def close(self) -> None:
        """Has the ranks leave the process group and exit; ends those that don't within seconds."""
        if self.is_open:
            with self._ending_ranks_on_error():
                self._fleet.send_task(GOODBYE)
                self._fleet.wait_for(self._have_left, time.monotonic() + LEAVE_S)
        self._fleet.end(keeps_logs=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def _ending_ranks_on_error(self) -> Iterator[None]:
        try:
            yield
        except RankError:
            self._fleet.end(keeps_logs=True)
            raise
        except BaseException:
            self._fleet.end(keeps_logs=False)
            raise

    def _have_left(self) -> bool:
        return all(process.code is not None for process in self._fleet.processes.values())

    def _start(self, deadline: float) -> None:
        self._fleet.wait_for(self._know_hosts, deadline)
        self._require_hosts("said nothing in time")
        self._send_setups()
        self._fleet.wait_for(self._were_started, deadline)
        self._require_hosts("didn't start its ranks in time")
        conversation = Conversation(self._fleet, None)
        # Loading libraries can hold the interpreter's lock for long: silence means nothing yet.
        left_s = max(0.0, deadline - time.monotonic())
        conversation.listen(left_s, silence_s=max(left_s, self._silence_s))
        if conversation.failures:
            raise _rank_error("starting the ranks", conversation.failures, self._fleet.links)

    def _know_hosts(self) -> bool:
        return all(link.facts or link.lost for link in self._fleet.links)

    def _were_started(self) -> bool:
        return all(link.folder or link.lost for link in self._fleet.links if link.ranks)

    def _require_hosts(self, if_late: str) -> None:
        """Raises a RankError that names the hosts that aren't as far as they should be."""
        links = self._fleet.links
        late = [link for link in links if not (link.folder if link.ranks else link.facts)]
        if lost := [link for link in links if link.lost] or late:
            named = "\n".join(f"{link.name}: {link.lost or if_late}" for link in lost)
            ranks = tuple(rank for link in lost for rank in link.ranks)
            raise RankError(f"starting the ranks: {named}", ranks, were_lost=True)

    def _devices(self) -> Mapping[str, Sequence[str]]:
        """The devices that ranks may have, by host."""
        if self._hosts is not None:
            return devices_on(self._fleet, self._hosts, self.device)
        on_gpus = self.device == "cuda"
        devices = [f"cuda:{rank}" if on_gpus else "cpu" for rank in range(self.size)]
        return {self._fleet.links[0].name: devices}

    def _send_setups(self) -> None:
        """Has each host start its ranks."""
        hosts = self._hosts or THIS_MACHINE
        self.arrangement = arranged(self._fleet, self._devices(), self.size, hosts)
        for warning in self.arrangement.warnings:
            warnings.warn(warning, PlanWarning, stacklevel=2)
        self._fleet.processes |= {number: Process() for number in range(self.size)}
        for share in self.arrangement.shares:
            self._send_setup(share)

    def _send_setup(self, share: HostShare) -> None:
        link, path, interface = share.link, search_path(), share.interface.name
        link.ranks = list(share.devices)
        is_here = link.launch.launcher == "direct"
        setup = {
            "devices": share.devices,
            "world_size": self.size,
            "are_forked": self.device == "cpu",
            "path": path,
            "folder": os.getcwd(),
            "interface": interface,
            "environment": carried(self.environment),
            "ends_by_silence": not is_here,
        }
        self._fleet.send(link, Frame(Kind.SETUP, NOBODY, json.dumps(setup).encode()))
        if is_here:
            on_gpus = self.device == "cuda"
            self.environment = rank_environment(
                self.environment, path, len(link.ranks), interface, on_gpus=on_gpus
            )


def _require_room(ranks: int, device: DeviceKind) -> None:
    if ranks < 1:
        raise InputError(f"{ranks} ranks can't be started; at least 1 is needed")
    gpus = gpus_here(environment()) if device == "cuda" else ranks
    if ranks > gpus:
        raise InputError(
            f"{ranks} ranks need a GPU each, this machine has {gpus}; use fewer, or CPU ranks"
        )


def _path_of(function: Callable[..., object]) -> str:
    if isinstance(function, ByName):
        return str(function)
    return f"{function.__module__}.{function.__qualname__}"


def _pickled_task(
    function: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]
) -> bytes:
    where = _path_of(function)
    if where.startswith("__main__.") or "<" in where:
        raise ValueError(
            f"{where} can't be run on ranks: put it at the top level of a module that is imported"
        )
    try:
        return pickle.dumps((function, args, kwargs))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(f"{where} can't be run on ranks: {error}") from None


def _rank_error(what: str, failures: Sequence[Failure], links: Sequence[AgentLink]) -> RankError:
    """One error from all failures: causes first, equal ones once; then what followed from them."""
    ordered = sorted(failures, key=lambda failure: (failure.is_consequence, failure.at))
    causes = [f for f in ordered if f.is_consequence == ordered[0].is_consequence]
    alike: dict[tuple[str, str], list[int]] = {}
    for failure in causes:
        alike.setdefault((failure.summary, failure.details.rstrip()), []).append(failure.rank)
    first = causes[0].summary
    parts = [f"{what}: {placed(links, (f.rank for f in causes if f.summary == first))} {first}"]
    for (summary, details), ranks in alike.items():
        parts += [f"--- {placed(links, ranks)} {summary}", details]
    for failure in ordered:
        if failure not in causes:
            where = placed(links, [failure.rank])
            parts.append(f"--- in consequence {where} {failure.summary}")
    logs = _folders(links)
    parts.append("All ranks were ended." + (f" Their logs: {logs}" if logs else ""))
    return RankError(
        "\n".join(part for part in parts if part),
        tuple(failure.rank for failure in causes),
        were_lost=all(failure.is_loss for failure in causes),
    )


def _folders(links: Sequence[AgentLink]) -> str:
    """Where the logs of ranks lie, with their hosts where those aren't this machine alone."""
    if [link.launch.launcher for link in links] == ["direct"]:
        return "" if links[0].lost else str(links[0].folder)
    # of a lost host nobody knows what is left
    return ", ".join(
        f"{link.name}:{link.folder}" for link in links if link.folder and not link.lost
    )
