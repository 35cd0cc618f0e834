"""One rank: what it says to the pool that started it, and what it does.

`runtime/ranks/pool.py` starts a rank as `python -m ditplan.runtime.ranks.rank_process`, with a
ticket as JSON on its standard input. The rank connects back, joins the process group and runs the
tasks it is sent. A task is a pickled `(function, args, kwargs)`, and `GOODBYE` the last one; a rank
says pickled pairs `(kind, content)`.
"""

import faulthandler
import json
import os
import pickle
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
import torch.distributed as dist
from torch.distributed import FileStore  # type: ignore[attr-defined]

from ditplan.profiles.errors import InputError, PlanWarning
from ditplan.runtime.groups import GROUP_TIMEOUT, GroupCache, RankContext
from ditplan.runtime.ranks.folders import remove_if_orphaned
from ditplan.runtime.ranks.handshake import introduce

HEARTBEAT_S = 1.0
LEAVE_S = 5.0
GOODBYE = b""
# On this signal a rank writes the Python stack of its main thread to its log.
STACK_SIGNAL = signal.SIGUSR1

Kind = Literal["heartbeat", "warning", "done", "failed", "closed"]


@dataclass(frozen=True)
class Ticket:
    """What a rank needs to take part; the key is secret: a ticket never goes on a command line.

    `folder` is the ranks' own, in which they meet.
    """

    rank: int
    world_size: int
    device: str
    host: str
    port: int
    key: str
    folder: str

    def to_json(self) -> str:
        """The ticket as one line."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Raised:
    """An exception in a rank: its last line, its message, its traceback, when (s since 1970)."""

    summary: str
    message: str
    traceback: str
    is_input_error: bool
    at: float

    @classmethod
    def from_exception(cls, error: BaseException) -> "Raised":
        """Describes an exception that was just caught, leaving out this file's own frames."""
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        return cls(
            summary="".join(traceback.format_exception_only(error)).strip(),
            message=str(error),
            traceback="".join(traceback.format_exception(type(error), error, trace)),
            is_input_error=isinstance(error, InputError),
            at=time.time(),
        )


class Channel:
    """The rank's end of the connection; while the rank is busy, a thread says that it lives.

    Ends the process when the pool is gone.
    """

    def __init__(self, connection: Connection, folder: Path) -> None:
        self._connection = connection
        self._folder = folder
        self._lock = threading.Lock()
        self._busy = threading.Event()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def receive(self) -> bytes:
        """The next task, or `GOODBYE`."""
        try:
            return self._connection.recv_bytes()
        except (EOFError, OSError):
            end_orphan(self._folder)

    def send(self, kind: Kind, content: object) -> None:
        """Sends one message."""
        # Plain pickle: multiprocessing's own puts tensors into shared memory that dies with us.
        message = pickle.dumps((kind, content))
        try:
            with self._lock:
                self._connection.send_bytes(message)
        except OSError:
            end_orphan(self._folder)

    def answer(self, work: Callable[[], object]) -> None:
        """Works and sends `done` with the pickled result, or `failed` with what was raised.

        What warns of a plan on the way is sent as well: the rank's own log is read by nobody.
        """
        self._busy.set()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("always", PlanWarning)
                warnings.showwarning = partial(self._warn, warnings.showwarning)
                result = pickle.dumps(work())
        except BaseException as error:  # noqa: BLE001 - whatever it is, the pool must hear of it
            self.send("failed", asdict(Raised.from_exception(error)))
        else:
            self.send("done", result)
        finally:
            self._busy.clear()

    def _warn(
        self,
        show: Callable[..., None],
        message: Warning | str,
        category: type[Warning],
        *place: Any,
    ) -> None:
        if issubclass(category, PlanWarning):
            self.send("warning", str(message))
        else:
            show(message, category, *place)

    def _beat(self) -> None:
        while self._busy.wait():
            self.send("heartbeat", None)
            time.sleep(HEARTBEAT_S)


def end_orphan(folder: Path) -> NoReturn:
    """Ends a rank whose pool is gone; nobody else is left to remove the folder."""
    remove_if_orphaned(folder)
    end_process()


def end_process() -> NoReturn:
    """Ends this process and those it started, at once."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


def join(ticket: Ticket) -> RankContext:
    """Joins the process group: NCCL on the rank's own GPU, gloo on CPUs."""
    device = torch.device(ticket.device)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=_store(Path(ticket.folder)),
        rank=ticket.rank,
        world_size=ticket.world_size,
        timeout=GROUP_TIMEOUT,
        device_id=device if on_gpu else None,
    )
    groups = GroupCache(ticket.rank, ticket.world_size)
    return RankContext(ticket.rank, ticket.world_size, device, groups)


def _store(folder: Path) -> FileStore:
    """Where the ranks of a host tell each other their addresses: a file that only this user may
    open. A `TCPStore` listens on all interfaces and believes whoever connects.
    """
    store = FileStore(str(folder / "store"))
    store.set_timeout(GROUP_TIMEOUT)
    return store


def run_task(context: RankContext, task: bytes) -> object:
    """Calls the task's function, which is found by its module and name."""
    function, args, kwargs = pickle.loads(task)
    return function(context, *args, **kwargs)


def serve(ticket: Ticket) -> None:
    """The life of a rank: connect, join, run tasks until told to stop, leave."""
    folder = Path(ticket.folder)
    try:
        connection = introduce((ticket.host, ticket.port), bytes.fromhex(ticket.key), ticket.rank)
    except (EOFError, OSError):
        remove_if_orphaned(folder)
        raise
    channel = Channel(connection, folder)
    joined: list[RankContext] = []
    channel.answer(lambda: joined.append(join(ticket)))
    while (task := channel.receive()) != GOODBYE:
        channel.answer(lambda task=task: run_task(joined[0], task))  # type: ignore[misc]
    # Leaving needs the other ranks; if one is gone nobody may be there to end this one.
    deadline = threading.Timer(LEAVE_S, end_process)
    deadline.daemon = True
    deadline.start()
    if joined:
        joined[0].groups.close()
        dist.destroy_process_group()


if __name__ == "__main__":
    faulthandler.enable()
    faulthandler.register(STACK_SIGNAL, all_threads=False)
    serve(Ticket(**json.load(sys.stdin)))
