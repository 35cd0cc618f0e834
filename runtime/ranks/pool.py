"""Starts ranks as processes, sends them functions to run, and ends them all when one fails."""

import contextlib
import json
import os
import pickle
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self, TypeVar

import torch
import torch.distributed as dist

from ditplan.profiles.cluster import DeviceKind
from ditplan.profiles.errors import ClusterError, InputError, PlanWarning
from ditplan.profiles.host import Host
from ditplan.runtime.groups import GROUP_TIMEOUT, GroupCache, RankContext
from ditplan.runtime.ranks.agent_link import AgentLink
from ditplan.runtime.ranks.by_name import ByName
from ditplan.runtime.ranks.conversation import Conversation, Failure, placed
from ditplan.runtime.ranks.environment import (
    NO_MULTICAST,
    carried,
    cores,
    environment,
    rank_environment,
    set_where_unset,
)
from ditplan.runtime.ranks.fleet import Fleet, Process
from ditplan.runtime.ranks.frames import NOBODY, Frame, Kind
from ditplan.runtime.ranks.hosts import require_local
from ditplan.runtime.ranks.interface_choice import choose_interfaces
from ditplan.runtime.ranks.launchers import launch_on
from ditplan.runtime.ranks.rank_process import GOODBYE, LEAVE_S

AGENT = "ditplan.runtime.ranks.agent"
LOG_S = 10.0
THIS_MACHINE = Host("localhost")

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
    leaves. `environment` is what ranks of this machine are started with.
    """

    def __init__(
        self,
        hosts: Sequence[Host] | None,
        ranks: int,
        device: DeviceKind,
        *,
        start_timeout_s: float = 180.0,
        silence_s: float = 30.0,
    ) -> None:
        """Starts `ranks` ranks and has them join one process group.

        Args:
            hosts: where; None is this machine. Ranks follow their order.
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
        _require_room(hosts, ranks, device)
        self.device: DeviceKind = device
        self.size = ranks
        own = environment()
        self.environment: Mapping[str, str] = own
        self._silence_s = silence_s
        self._hosts = tuple(hosts or (THIS_MACHINE,))
        launches = {_name(host): launch_on(host, AGENT, own) for host in self._hosts}
        self._fleet = Fleet(launches, {**own, "PYTHONPATH": os.pathsep.join(_search_path())})
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
        self._give_seats()
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

    def _give_seats(self) -> None:
        """Gives ranks to hosts, as many as each has room for, in their order."""
        left = list(range(self.size))
        for link, host in zip(self._fleet.links, self._hosts, strict=True):
            assert link.facts is not None
            room = host.slots or (link.facts.gpus if self.device == "cuda" else link.facts.cores)
            if self._hosts == (THIS_MACHINE,):
                room = self.size
            link.ranks, left = left[:room], left[room:]
        self._fleet.processes |= {number: Process() for number in range(self.size)}

    def _send_setups(self) -> None:
        links = [link for link in self._fleet.links if link.ranks]
        for link, interface in zip(links, self._interfaces(links), strict=True):
            setup = {
                "devices": {
                    rank: f"cuda:{slot}" if self.device == "cuda" else "cpu"
                    for slot, rank in enumerate(link.ranks)
                },
                "world_size": self.size,
                "are_forked": self.device == "cpu",
                "path": _search_path(),
                "interface": interface,
                "environment": carried(self.environment),
                "ends_by_silence": link.launch.launcher != "direct",
            }
            self._fleet.send(link, Frame(Kind.SETUP, NOBODY, json.dumps(setup).encode()))
            if link.launch.launcher == "direct":
                self.environment = rank_environment(
                    self.environment, _search_path(), len(link.ranks), interface
                )

    def _interfaces(self, links: Sequence[AgentLink]) -> list[str]:
        """The interface on which each host's ranks take connections."""
        networks = [link.facts.network(link.name, {}) for link in links if link.facts]
        choice = choose_interfaces(networks)
        return [one.name for one in choice.interfaces]


def attach_from_torchrun() -> RankContext:
    """The context of a rank that torchrun started: on its own GPU if there is one, else on the CPU.

    Initializes the default process group if nobody has.

    Raises:
        InputError: the process wasn't started by torchrun.
    """
    try:
        rank, local_rank, world_size = (
            int(environment()[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")
        )
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{error} in the environment: this process wasn't started by torchrun; "
            "start it as `torchrun --nproc-per-node N script.py`"
        ) from None
    set_where_unset(*NO_MULTICAST)
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        bound = device if device.type == "cuda" else None
        dist.init_process_group("nccl" if bound else "gloo", timeout=GROUP_TIMEOUT, device_id=bound)
    return RankContext(rank, world_size, device, GroupCache(rank, world_size))


def count_slots(hosts: Sequence[Host] | None, device: DeviceKind) -> int:
    """How many ranks there is room for: the slots given, else one for each GPU or CPU core.

    Raises:
        InputError: a host that ranks can't be started on.
    """
    found = torch.cuda.device_count() if device == "cuda" else cores()
    if hosts is None:
        return found
    require_local(hosts)
    return sum(found if host.slots is None else host.slots for host in hosts)


def _require_room(hosts: Sequence[Host] | None, ranks: int, device: DeviceKind) -> None:
    if ranks < 1:
        raise InputError(f"{ranks} ranks can't be started; at least 1 is needed")
    slots = count_slots(hosts, device)
    gpus = torch.cuda.device_count() if device == "cuda" else ranks
    if ranks > gpus:
        raise InputError(
            f"{ranks} ranks need a GPU each, this machine has {gpus}; use fewer, or CPU ranks"
        )
    if hosts is not None and all(host.slots for host in hosts) and ranks > slots:
        names = ", ".join(f"{host.name} slots={host.slots}" for host in hosts)
        raise InputError(
            f"{ranks} ranks don't fit the {slots} slots of the hosts ({names}); give more slots"
        )


def _name(host: Host) -> str:
    """What messages call a host."""
    return host.name if host.port is None else f"{host.name}:{host.port}"


def _search_path() -> list[str]:
    """This process's own, so that a task is found by ranks if it was found here."""
    return [path or os.getcwd() for path in sys.path]


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
    parts.append(f"All ranks were ended. Their logs: {_folders(links)}")
    return RankError(
        "\n".join(part for part in parts if part),
        tuple(failure.rank for failure in causes),
        were_lost=all(failure.is_loss for failure in causes),
    )


def _folders(links: Sequence[AgentLink]) -> str:
    """Where the logs of ranks lie, with their hosts where those aren't this machine alone."""
    if [link.launch.launcher for link in links] == ["direct"]:
        return str(links[0].folder)
    return ", ".join(f"{link.name}:{link.folder}" for link in links if link.folder)
