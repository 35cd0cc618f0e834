"""Starts ranks as processes, sends them functions to run, and ends them all when one of them fails.

This is the only file that reads the environment.
"""

import contextlib
import os
import pickle
import secrets
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import psutil
import torch

from ditplan.profiles.cluster import DeviceKind
from ditplan.profiles.errors import ClusterError, InputError, PlanWarning
from ditplan.profiles.host import Host
from ditplan.runtime.ranks.by_name import ByName
from ditplan.runtime.ranks.conversation import TICK_S, Conversation, Failure, Rank, numbered
from ditplan.runtime.ranks.folders import keep_folder, make_folder
from ditplan.runtime.ranks.handshake import Reception
from ditplan.runtime.ranks.hosts import LOOPBACK, require_local
from ditplan.runtime.ranks.rank_process import GOODBYE, LEAVE_S, Ticket

NO_MULTICAST = ("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")
"""Peers write to one rank at a time. Setting multicast up fails on GPUs that lack it, and can wait
for ever where ranks get to it at different times."""

T = TypeVar("T")


class RankError(ClusterError):
    """Ranks failed; `ranks` are those where it began, the message holds traceback, log or stack."""

    def __init__(self, message: str, ranks: tuple[int, ...], *, were_lost: bool) -> None:
        super().__init__(message)
        self.ranks = ranks
        self.ranks_were_lost = were_lost


class RankPool:
    """Rank processes that are kept for many tasks; a context manager.

    Any failure ends all ranks and closes the pool; start a new one then. The ranks' standard output
    and error go to log files, which `close()` deletes and a failure leaves. `environment` is what
    the ranks were started with.
    """

    def __init__(
        self,
        hosts: Sequence[Host] | None,
        ranks: int,
        device: DeviceKind,
        *,
        gpus: Sequence[int] | None = None,
        start_timeout_s: float = 180.0,
        silence_s: float = 30.0,
    ) -> None:
        """Starts `ranks` ranks and has them join one process group.

        Args:
            hosts: where; None is this machine. Ranks follow their order.
            ranks: how many.
            device: "cuda" gives each rank a GPU of its own, "cpu" uses gloo.
            gpus: which GPU each rank has, of those that CUDA may see; the first ones if None.
            start_timeout_s: how long starting may take.
            silence_s: a rank that shows no sign of life for so long during a task has failed; one
                whose process is stopped sooner. What gives other threads no turn is silence, too:
                compiling took over 10 s so.

        Raises:
            InputError: hosts that can't be used, or more ranks than they have room for.
            RankError: a rank failed while starting.
        """
        _require_room(hosts, ranks, device)
        self.device: DeviceKind = device
        self.size = ranks
        self._gpus = range(ranks) if gpus is None else gpus
        self.environment: Mapping[str, str] = _rank_environment(ranks)
        self._silence_s = silence_s
        self._is_open = True
        self._folder = make_folder()
        self._ranks: list[Rank] = []
        with self._ending_ranks_on_error():
            self._start(start_timeout_s)

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
        if not self._is_open:
            raise ClusterError("these ranks were ended; start a new RankPool")
        task = _pickled_task(function, args, kwargs)
        with self._ending_ranks_on_error():
            conversation = Conversation(self._ranks, task)
            conversation.listen(timeout_s, self._silence_s)
            for warning in conversation.warnings:
                warnings.warn(warning, PlanWarning, stacklevel=2)
            if conversation.is_refused_by_all:
                refusal = conversation.raised[0].message
            elif conversation.failures:
                name = _path_of(function).rpartition(".")[2]
                raise _rank_error(name, conversation.failures, self._folder)
            else:
                results = conversation.results
                return [pickle.loads(results[rank.number]) for rank in self._ranks]
        raise InputError(refusal)

    @property
    def is_open(self) -> bool:
        """Whether tasks can be run."""
        return self._is_open

    def logs(self) -> list[str]:
        """What each rank has written to standard output and error so far."""
        return [rank.log_text() for rank in self._ranks]

    def processes(self) -> list[int]:
        """The process id of each rank."""
        return [rank.process.pid for rank in self._ranks]

    def close(self) -> None:
        """Has the ranks leave the process group and exit; ends those that don't within seconds."""
        if not self._is_open:
            return
        with self._ending_ranks_on_error():
            for rank in self._ranks:
                rank.dismiss(GOODBYE)
            deadline = time.monotonic() + LEAVE_S
            for rank in self._ranks:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    rank.process.wait(max(0.0, deadline - time.monotonic()))
        self._end_ranks()
        shutil.rmtree(self._folder, ignore_errors=True)

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
            self._end_ranks()
            keep_folder(self._folder)
            raise
        except BaseException:
            self._end_ranks()
            shutil.rmtree(self._folder, ignore_errors=True)
            raise

    def _end_ranks(self) -> None:
        self._is_open = False
        for rank in self._ranks:
            rank.end()
        for rank in self._ranks:
            rank.forget()

    def _start(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        key = secrets.token_bytes(32)
        with Reception(LOOPBACK, key, backlog=max(128, self.size)) as reception:
            folder = str(self._folder)
            for number in range(self.size):
                device = f"cuda:{self._gpus[number]}" if self.device == "cuda" else "cpu"
                self._start_rank(
                    Ticket(number, self.size, device, LOOPBACK, reception.port, key.hex(), folder)
                )
            self._connect(reception, deadline)
        conversation = Conversation(self._ranks, None)
        # Loading libraries can hold the interpreter's lock for long: silence means nothing yet.
        conversation.listen(max(0.0, deadline - time.monotonic()), silence_s=timeout_s)
        if conversation.failures:
            raise _rank_error("starting the ranks", conversation.failures, self._folder)

    def _start_rank(self, ticket: Ticket) -> None:
        log = self._folder / f"rank-{ticket.rank}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "ditplan.runtime.ranks.rank_process"],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=dict(self.environment),
                start_new_session=True,
            )
        self._ranks.append(Rank(ticket.rank, process, log))
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(ticket.to_json().encode())

    def _connect(self, reception: Reception, deadline: float) -> None:
        missing = {rank.number: rank for rank in self._ranks}
        while missing:
            for number, connection in reception.arrivals(TICK_S):
                missing.pop(number).connection = connection
            ranks = [rank for rank in missing.values() if rank.process.poll() is not None]
            failures = [rank.death() for rank in ranks]
            if not failures and time.monotonic() > deadline:
                summary = "didn't connect in time"
                failures = [
                    Failure(rank.number, summary, rank.log_tail(), time.time())
                    for rank in missing.values()
                ]
            if failures:
                raise _rank_error("starting the ranks", failures, self._folder)


def without_multicast() -> None:
    """Has this process, which others have started, set up no multicast unless they say so."""
    os.environ.setdefault(*NO_MULTICAST)


def environment() -> Mapping[str, str]:
    """The environment of this process."""
    return dict(os.environ)


def count_slots(hosts: Sequence[Host] | None, device: DeviceKind) -> int:
    """How many ranks there is room for: the slots given, else one for each GPU or CPU core.

    Raises:
        InputError: a host that ranks can't be started on.
    """
    found = torch.cuda.device_count() if device == "cuda" else _cores()
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


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _rank_environment(ranks: int) -> dict[str, str]:
    environment = dict(os.environ)
    # The parent's own search path, so that a task is found here if it was found there.
    environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    environment["PYTHONUNBUFFERED"] = "1"
    threads = str(max(1, _cores() // ranks))
    environment.setdefault("OMP_NUM_THREADS", threads)
    environment.setdefault("TORCHINDUCTOR_COMPILE_THREADS", threads)
    environment.setdefault(*NO_MULTICAST)
    # What ranks of one host say to each other is nobody else's business. Left to itself, NCCL takes
    # another interface, and gloo that of the host's name, which often leads to no usable address.
    loopback = _loopback_interface()
    environment["GLOO_SOCKET_IFNAME"] = loopback
    environment["NCCL_SOCKET_IFNAME"] = f"={loopback}"
    return environment


def _loopback_interface() -> str:
    for interface, addresses in psutil.net_if_addrs().items():
        if LOOPBACK in {address.address for address in addresses}:
            return interface
    raise ClusterError(f"no network interface has {LOOPBACK}; bring up the loopback interface")


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


def _rank_error(what: str, failures: Sequence[Failure], folder: Path) -> RankError:
    """One error from all failures: causes first, equal ones once; then what followed from them."""
    ordered = sorted(failures, key=lambda failure: (failure.is_consequence, failure.at))
    causes = [f for f in ordered if f.is_consequence == ordered[0].is_consequence]
    alike: dict[tuple[str, str], list[int]] = {}
    for failure in causes:
        alike.setdefault((failure.summary, failure.details.rstrip()), []).append(failure.rank)
    first = causes[0].summary
    parts = [f"{what}: {numbered(f.rank for f in causes if f.summary == first)} {first}"]
    for (summary, details), ranks in alike.items():
        parts += [f"--- {numbered(ranks)} {summary}", details]
    followed = [failure for failure in ordered if failure not in causes]
    parts += [f"--- in consequence rank {failure.rank} {failure.summary}" for failure in followed]
    parts.append(f"All ranks were ended. Their logs: {folder}")
    return RankError(
        "\n".join(parts),
        tuple(failure.rank for failure in causes),
        were_lost=all(failure.is_loss for failure in causes),
    )
