"""Starts the ranks of a host for its agent, tells how they end, and ends them.

An agent starts it as `python -m ditplan.runtime.ranks.rank_starter`, with a socket for standard
input. Ranks on CPUs are forked from it: the libraries that all of them need are imported once. CUDA
stands no fork, and each rank of a GPU has a process that begins anew. When the agent is gone, or
stopped for long, it ends ranks, agent and itself.
"""

import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from ditplan.runtime.ranks.exchange import GRACE_S, SILENCE_S, Exchange
from ditplan.runtime.ranks.frames import NOBODY, Frame, Kind, Wire

TICK_S = 0.1
LIBRARIES = ("torch.distributed", "diffusers.models.modeling_utils")
"""What ranks on CPUs need, and all the time that starting them takes."""


@dataclass(frozen=True)
class Order:
    """A rank to start: its ticket as JSON, its end of its socket pair, and its log."""

    ticket: str
    descriptor: int
    log: str


class Starter:
    """The ranks that were started, and the wire to the agent."""

    def __init__(self, agent: Wire) -> None:
        self._agent = agent
        self._parent = os.getppid()
        self._ranks: dict[int, int] = {}
        self._ended: set[int] = set()
        self._is_over = False
        self._exchange = Exchange()
        self._exchange.add(agent, self._take, lambda _: self._finish())

    def serve(self) -> None:
        """Does what the agent says until it says that it is over, or says nothing any more."""
        while not self._is_over:
            self._exchange.turn(TICK_S)
            self._look_for_ended()
            if time.monotonic() - self._agent.heard_at > SILENCE_S + GRACE_S:
                # a stopped process ends on this signal only
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._parent, signal.SIGKILL)
                self._finish()
        self._end_ranks()

    def _take(self, frame: Frame) -> None:
        if frame.kind == Kind.SETUP:
            self._start(frame.payload)
        elif frame.kind == Kind.END:
            self._finish()

    def _finish(self) -> None:
        self._is_over = True

    def _start(self, payload: bytes) -> None:
        told = json.loads(payload)
        orders = [Order(**order) for order in told["orders"]]
        if told["are_forked"]:
            for name in LIBRARIES:
                importlib.import_module(name)
        try:
            for order in orders:
                if told["are_forked"]:
                    process = self._forked(order, [one for one in orders if one is not order])
                else:
                    process = self._spawned(order)
                self._ranks[json.loads(order.ticket)["rank"]] = process
        except OSError as error:
            self._agent.send(Frame(Kind.REFUSED, NOBODY, str(error).encode()))
            return
        for order in orders:
            os.close(order.descriptor)
        self._agent.send(Frame(Kind.STARTED, NOBODY, json.dumps(self._ranks).encode()))

    def _forked(self, order: Order, others: Sequence[Order]) -> int:
        sys.stdout.flush()
        sys.stderr.flush()
        return os.fork() or self._become_rank(order, others)

    def _become_rank(self, order: Order, others: Sequence[Order]) -> NoReturn:
        code = 1
        try:
            os.setsid()
            log = os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(log, 1)
            os.dup2(log, 2)
            # what is the starter's or another rank's has to close when that one ends
            for descriptor in (log, *(one.descriptor for one in others), *self._agent.descriptors):
                os.close(descriptor)
            os.set_inheritable(order.descriptor, False)
            from ditplan.runtime.ranks.rank_process import live

            live(order.ticket, socket.socket(fileno=order.descriptor))
            code = 0
        except BaseException:  # noqa: BLE001 - this process is the rank's, whatever went wrong in it
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _spawned(self, order: Order) -> int:
        with open(order.log, "wb") as log:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "ditplan.runtime.ranks.rank_process"),
                    str(order.descriptor),
                ],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(order.descriptor,),
                start_new_session=True,
            )
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(order.ticket.encode())
        # its end is looked for here, and nowhere else
        process.returncode = 0
        return process.pid

    def _look_for_ended(self) -> None:
        """Says of each process that has ended how; it stays a zombie, so that its number is its
        own until all are ended.
        """
        for rank, process in self._ranks.items():
            if rank in self._ended:
                continue
            found = os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is not None:
                self._ended.add(rank)
                was_killed = found.si_code != os.CLD_EXITED
                code = -found.si_status if was_killed else found.si_status
                self._agent.send(Frame(Kind.STATE, rank, json.dumps({"code": code}).encode()))

    def _end_ranks(self) -> None:
        for process in self._ranks.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)
        for process in self._ranks.values():
            os.waitpid(process, 0)


if __name__ == "__main__":
    control = os.dup(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    Starter(Wire(control, os.dup(control))).serve()
    # taking the libraries down again would take seconds
    os._exit(0)
