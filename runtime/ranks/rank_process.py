"""One rank: what it says to the command, by its agent, and what it does.

A rank is forked by `runtime/ranks/rank_starter.py`, or started as `python -m
ditplan.runtime.ranks.rank_process DESCRIPTOR` with a ticket as JSON on its standard input. It joins
the process group and runs the tasks it is sent. A task is a pickled `(function, args, kwargs)`, and
`GOODBYE` the last one; a rank says pickled pairs `(kind, content)`.
"""

import contextlib
import faulthandler
import json
import os
import pickle
import queue
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from ditplan.profiles.errors import PlanWarning
from ditplan.runtime.groups import GROUP_TIMEOUT, GroupCache, RankContext
from ditplan.runtime.ranks.environment import nccl_writes_topology
from ditplan.runtime.ranks.exchange import BEAT_S
from ditplan.runtime.ranks.folders import remove_if_orphaned
from ditplan.runtime.ranks.frames import Frame, Kind, Line
from ditplan.runtime.ranks.messages import GOODBYE, LEAVE_S, Raised, Saying
from ditplan.runtime.ranks.relayed_store import RelayedStore
from ditplan.runtime.ranks.seat import STACK_SIGNAL


@dataclass(frozen=True)
class Ticket:
    """What a rank needs to take part; `folder` is its agent's, in which the ranks' logs lie."""

    rank: int
    world_size: int
    device: str
    folder: str

    def to_json(self) -> str:
        """The ticket as one line."""
        return json.dumps(asdict(self))


class Channel:
    """The rank's end of its line: one thread listens, and while the rank is busy, another says that
    it lives.

    Ends the process when the agent is gone.
    """

    def __init__(self, connection: socket.socket, ticket: Ticket) -> None:
        self._line = Line(connection)
        self._ticket = ticket
        self._tasks: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._busy = threading.Event()
        self.store = RelayedStore(self._line, ticket.rank, GROUP_TIMEOUT)
        for work in (self._listen, self._beat):
            threading.Thread(target=work, name=work.__name__, daemon=True).start()

    def receive(self) -> bytes:
        """The next task, or `GOODBYE`."""
        return self._tasks.get()

    def send(self, saying: Saying, content: object) -> None:
        """Sends one message."""
        # Plain pickle: multiprocessing's own puts tensors into shared memory that dies with us.
        message = pickle.dumps((saying, content))
        try:
            self._line.send(Frame(Kind.SAID, self._ticket.rank, message))
        except OSError:
            end_orphan(Path(self._ticket.folder))

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
            self.send("failed", asdict(Raised.from_exception(error, __file__)))
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

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            for frame in self._line.frames():
                if frame.kind == Kind.TASK:
                    self._tasks.put(frame.payload)
                elif frame.kind == Kind.ANSWER:
                    self.store.take(frame.payload)
        end_orphan(Path(self._ticket.folder))

    def _beat(self) -> None:
        while self._busy.wait():
            self.send("heartbeat", None)
            time.sleep(BEAT_S)


def end_orphan(folder: Path) -> NoReturn:
    """Ends a rank whose agent is gone; nobody else is left to remove the folder."""
    remove_if_orphaned(folder)
    end_process()


def end_process() -> NoReturn:
    """Ends this process and those it started, at once."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


def join(ticket: Ticket, store: RelayedStore) -> RankContext:
    """Joins the process group: NCCL on the rank's own GPU, gloo on CPUs."""
    device = torch.device(ticket.device)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    dump = Path(ticket.folder) / f"topology-{ticket.rank}.xml"
    # here alone: with a device of its own, NCCL makes the communicator of all ranks at once
    with nccl_writes_topology(str(dump), ticket.rank):
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=store,
            rank=ticket.rank,
            world_size=ticket.world_size,
            timeout=GROUP_TIMEOUT,
            device_id=device if on_gpu else None,
        )
    groups = GroupCache(ticket.rank, ticket.world_size)
    written = dump if dump.exists() else None
    return RankContext(ticket.rank, ticket.world_size, device, groups, topology_file=written)


def run_task(context: RankContext, task: bytes) -> object:
    """Calls the task's function, which is found by its module and name."""
    function, args, kwargs = pickle.loads(task)
    return function(context, *args, **kwargs)


def live(ticket: str, connection: socket.socket) -> None:
    """The life of a rank, of a ticket as JSON: join, run tasks until told to stop, leave."""
    faulthandler.enable()
    faulthandler.register(STACK_SIGNAL, all_threads=False)
    mine = Ticket(**json.loads(ticket))
    channel = Channel(connection, mine)
    joined: list[RankContext] = []
    channel.answer(lambda: joined.append(join(mine, channel.store)))
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
    live(sys.stdin.read(), socket.socket(fileno=int(sys.argv[1])))
