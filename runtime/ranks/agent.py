"""The agent: one on each host, between the command and the ranks there. Imports no torch.

`runtime/ranks/launchers.py` starts it as `python -m ditplan.runtime.ranks.agent`. By standard input
and output it speaks frames with the command, and knows by them that it still lives. It has a rank
starter start the ranks, passes on what command and ranks say to each other without looking into it,
says how the ranks' processes are, and ends them: when told, and when the command is gone.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from ditplan.runtime.ranks.environment import environment, rank_environment
from ditplan.runtime.ranks.exchange import BEAT_S, SILENCE_S, Exchange
from ditplan.runtime.ranks.folders import keep_folder, make_folder
from ditplan.runtime.ranks.frames import GREETING, NOBODY, Frame, Kind, Wire
from ditplan.runtime.ranks.host_facts import host_facts
from ditplan.runtime.ranks.rank_starter import Order
from ditplan.runtime.ranks.reachability import routes
from ditplan.runtime.ranks.seat import Seat, out_of_memory_kills

TICK_S = 0.2
ENDING_S = 3.0
"""How long killed processes may take to be gone."""

DOWN_S = 5.0
"""So long an interface may be down, as when a switch is renegotiated."""

LOG_BYTES = 1 << 20
"""Without so much room for logs no rank is started: what went wrong couldn't be told."""


class Agent:
    """The ranks of this host, the wires to them and the one to the command."""

    def __init__(self, command: Wire, own: Mapping[str, str]) -> None:
        """Begins to talk with the command; `own` is the environment of this process."""
        self._command = command
        self._own = own
        self._exchange = Exchange()
        self._exchange.add(command, self._hear, lambda _: self._finish())
        self._seats: dict[int, Seat] = {}
        self._starter: subprocess.Popen[bytes] | None = None
        self._starter_wire: Wire | None = None
        self._folder: Path | None = None
        self._keeps_logs = False
        self._is_over = False
        # until it is told that its command runs beside it, which may be stopped from the keyboard
        self._ends_by_silence = True
        self._beat_at = 0.0
        self._interface: str | None = None
        self._down_since: float | None = None
        self._memory_kills = out_of_memory_kills()
        command.send_bytes(GREETING)
        self._say(Kind.HELLO, host_facts(own).to_json())

    def serve(self) -> None:
        """Does what the command says until it says that it is over, or is gone."""
        try:
            while not self._is_over:
                self._exchange.turn(TICK_S)
                self._look_around()
        finally:
            self._end()

    def _say(self, kind: Kind, payload: bytes = b"", rank: int = NOBODY) -> None:
        self._command.send(Frame(kind, rank, payload))

    def _finish(self) -> None:
        self._is_over = True

    def _hear(self, frame: Frame) -> None:
        """Takes what the command says."""
        if frame.kind == Kind.SETUP:
            try:
                self._set_up(json.loads(frame.payload))
            except OSError as error:
                self._say(Kind.REFUSED, f"can't start ranks: {error}".encode())
        elif frame.kind == Kind.TASK:
            for seat in self._seats.values():
                seat.wire.send(frame)
        elif frame.kind == Kind.ANSWER:
            self._seats[frame.rank].wire.send(frame)
        elif frame.kind == Kind.ROUTES:
            found = routes(json.loads(frame.payload))
            self._say(Kind.ROUTES, json.dumps(found).encode())
        elif frame.kind == Kind.LOOK:
            self._look(self._seats[frame.rank], frame.payload)
        elif frame.kind == Kind.END:
            self._keeps_logs = json.loads(frame.payload)["keeps_logs"]
            self._finish()

    def _look(self, seat: Seat, what: bytes) -> None:
        if json.loads(what) == "stack":
            seat.ask_for_stack()
        else:
            self._say(Kind.SEEN, seat.log_text().encode(), seat.number)

    def _set_up(self, told: dict[str, Any]) -> None:
        """Has the starter start the ranks.

        Raises:
            OSError: no room for logs, or no process can be started.
        """
        self._ends_by_silence = told["ends_by_silence"]
        self._interface = told["interface"]
        self._folder = make_folder()
        if (room := shutil.disk_usage(self._folder).free) < LOG_BYTES:
            raise OSError(f"{self._folder.parent} has {room} bytes left for their logs; free some")
        orders = [self._seat(told, rank, device) for rank, device in told["devices"].items()]
        ours, theirs = socket.socketpair()
        with theirs, (self._folder / "starter.log").open("wb") as log:
            self._starter = subprocess.Popen(
                [sys.executable, "-P", "-m", "ditplan.runtime.ranks.rank_starter"],
                stdin=theirs.fileno(),
                stdout=log,
                stderr=log,
                pass_fds=[order.descriptor for order in orders],
                env=rank_environment(
                    self._own | told["environment"],
                    told["path"],
                    len(orders),
                    told["interface"],
                    on_gpus=not told["are_forked"],
                ),
                # names of files lead where they do for the command, if there is such a folder here
                cwd=told["folder"] if os.path.isdir(told["folder"]) else None,
                start_new_session=True,
            )
        for order in orders:
            os.close(order.descriptor)
        self._starter_wire = _wire(ours)
        self._exchange.add(self._starter_wire, self._hear_starter, self._lose_starter)
        setup = {"orders": list(map(asdict, orders)), "are_forked": told["are_forked"]}
        self._starter_wire.send(Frame(Kind.SETUP, NOBODY, json.dumps(setup).encode()))

    def _seat(self, told: dict[str, Any], rank: str, device: str) -> Order:
        """Makes a rank's socket pair, and listens to our end of it."""
        assert self._folder is not None
        ours, theirs = socket.socketpair()
        seat = Seat(int(rank), _wire(ours), self._folder / f"rank-{rank}.log")
        self._seats[seat.number] = seat

        def pass_on(frame: Frame) -> None:
            self._say(frame.kind, frame.payload, seat.number)

        # that a rank has ended, the starter says
        self._exchange.add(seat.wire, pass_on, lambda _: None)
        ticket = {
            "rank": seat.number,
            "world_size": told["world_size"],
            "device": device,
            "folder": str(self._folder),
        }
        return Order(json.dumps(ticket), theirs.detach(), str(seat.log))

    def _hear_starter(self, frame: Frame) -> None:
        if frame.kind == Kind.STARTED:
            processes = json.loads(frame.payload)
            for rank, process in processes.items():
                self._seats[int(rank)].process = process
            started = {"processes": processes, "folder": str(self._folder)}
            self._say(Kind.STARTED, json.dumps(started).encode())
        elif frame.kind == Kind.STATE:
            seat = self._seats[frame.rank]
            seat.code = json.loads(frame.payload)["code"]
            lacked = out_of_memory_kills() > self._memory_kills
            ended = {"code": seat.code, "tail": seat.log_tail(), "host_lacked_memory": lacked}
            self._say(Kind.STATE, json.dumps(ended).encode(), seat.number)
        elif frame.kind == Kind.REFUSED:
            self._say(Kind.REFUSED, b"can't start ranks: " + frame.payload)

    def _lose_starter(self, _: str) -> None:
        assert self._folder is not None
        log = (self._folder / "starter.log").read_text(errors="replace").rstrip()
        last = log.splitlines()[-1] if log else "it wrote nothing"
        self._say(Kind.REFUSED, f"the process that starts ranks has ended: {last}".encode())

    def _look_around(self) -> None:
        """Sends what has to be said regularly, and looks who is silent, stopped or was asked."""
        now = time.monotonic()
        for seat in self._seats.values():
            if seat.asked is not None and (stack := seat.stack()) is not None:
                seat.asked = None
                self._say(Kind.SEEN, stack.encode(), seat.number)
        if now - self._beat_at < BEAT_S:
            return
        self._beat_at = now
        self._say(Kind.BEAT)
        if self._starter_wire is not None:
            self._starter_wire.send(Frame(Kind.BEAT, NOBODY))
        for seat in self._seats.values():
            if seat.has_changed():
                state = {"is_stopped": seat.is_stopped}
                self._say(Kind.STATE, json.dumps(state).encode(), seat.number)
        self._look_at_interface(now)
        if self._ends_by_silence and now - self._command.heard_at > SILENCE_S:
            self._finish()

    def _look_at_interface(self, now: float) -> None:
        """Says that the ranks' interface is down: their own connections notice it after minutes."""
        if self._interface is None:
            return
        state = psutil.net_if_stats().get(self._interface)
        if state is not None and state.isup:
            self._down_since = None
        elif self._down_since is None:
            self._down_since = now
        elif now - self._down_since > DOWN_S:
            self._say(Kind.REFUSED, f"its interface {self._interface} is down".encode())
            self._interface = None

    def _end(self) -> None:
        """Ends all that this agent has started, and leaves its logs where they are wanted."""
        for seat in self._seats.values():
            seat.end()
        if self._starter is not None:
            if self._starter_wire is not None:
                self._starter_wire.send(Frame(Kind.END, NOBODY))
            try:
                self._starter.wait(ENDING_S)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._starter.pid, signal.SIGKILL)
        if self._folder is not None:
            if self._keeps_logs:
                keep_folder(self._folder)
            else:
                shutil.rmtree(self._folder, ignore_errors=True)


def _wire(ours: socket.socket) -> Wire:
    descriptor = ours.detach()
    return Wire(descriptor, os.dup(descriptor))


def main() -> None:
    """Serves the command at the other end of standard input and output."""
    command = Wire(os.dup(0), os.dup(1))
    # what anything else writes is no frame
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    Agent(command, environment()).serve()


if __name__ == "__main__":
    main()
