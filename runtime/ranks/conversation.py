"""The pool's end of its talk with its ranks: what they answer, and how they fail."""

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from ditplan.runtime.ranks.rank_process import STACK_SIGNAL, Kind, Raised

STACK_S = 2.0
LOG_TAIL_LINES = 40
TICK_S = 0.2
STOPPED_SILENCE_S = 5.0
# How long to wait for what the other ranks have to say once one has failed. A refusal usually comes
# from all of them, but not at once: each may first have to import what the task needs.
SETTLE_S = 1.0
SETTLE_REFUSAL_S = 5.0
# An exception with one of these says that another rank has gone, so it isn't the cause.
CONSEQUENCES = (
    "Connection reset by peer",
    "Connection closed by peer",
    "Connection closed by remote peer",
    "Broken pipe",
    "remote process exited",
)

BEFORE_THE_ANSWER = ("heartbeat", "warning")
Event = tuple[int, Kind, Any]


@dataclass(frozen=True)
class Failure:
    """What went wrong on one rank, in a line and in detail; `at` is in seconds since 1970.

    `is_loss` says that its process died or went silent.
    """

    rank: int
    summary: str
    details: str
    at: float
    is_consequence: bool = False
    is_loss: bool = False


@dataclass
class Rank:
    """The process of one rank, what it logs, and the pool's end of the connection to it."""

    number: int
    process: subprocess.Popen[bytes]
    log: Path
    connection: Connection | None = None
    listener: threading.Thread | None = None

    def log_text(self, start: int = 0) -> str:
        """What the rank wrote to standard output and error, from a byte on."""
        return self.log.read_bytes()[start:].decode(errors="replace")

    def log_tail(self) -> str:
        """The last lines of the log."""
        lines = self.log_text().rstrip().splitlines()[-LOG_TAIL_LINES:]
        return "\n".join(["The end of its log:", *lines]) if lines else "It wrote nothing."

    def state(self) -> str:
        """What there is to say of a process that gives no stack."""
        status = "gone"
        with contextlib.suppress(psutil.NoSuchProcess):
            status = psutil.Process(self.process.pid).status()
        where = ", in the kernel or a driver" if status == psutil.STATUS_DISK_SLEEP else ""
        return f"It gave no stack; its process's state is {status}{where}. {self.log_tail()}"

    def is_stopped(self) -> bool:
        """Whether the process was stopped by a signal or a debugger."""
        stopped = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).status() in stopped
        return False

    def is_stopped_after(self, silence_s: float) -> bool:
        """Whether the process is stopped, and silent for longer than a debugger's glance takes."""
        return silence_s > STOPPED_SILENCE_S and self.is_stopped()

    def end(self) -> None:
        """Ends the rank and what it started, at once; works on stopped processes too."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def dismiss(self, goodbye: bytes) -> None:
        """Has the rank leave, if it is still there."""
        if self.connection is not None:
            with contextlib.suppress(OSError):
                self.connection.send_bytes(goodbye)
            self.connection.close()

    def forget(self) -> None:
        """Waits for the ended process and closes the connection."""
        self.process.wait()
        if self.listener is not None:
            self.listener.join(1.0)
        if self.connection is not None:
            self.connection.close()

    def death(self) -> Failure:
        """The failure of a rank whose process has ended by itself."""
        try:
            code = self.process.wait(2.0)
        except subprocess.TimeoutExpired:
            summary = "closed its connection"
        else:
            ended = f"died of {signal.Signals(-code).name}" if code < 0 else ""
            summary = ended or f"exited with code {code}"
        return Failure(self.number, summary, self.log_tail(), time.time(), is_loss=True)

    def listen(self, task: bytes | None, events: "queue.SimpleQueue[Event]") -> None:
        """Sends the rank its task and passes on what it says, up to its answer or its end."""
        assert self.connection is not None
        kind: Kind = "heartbeat"
        try:
            if task is not None:
                self.connection.send_bytes(task)
            while kind in BEFORE_THE_ANSWER:
                kind, content = pickle.loads(self.connection.recv_bytes())
                events.put((self.number, kind, content))
        except (EOFError, OSError):
            events.put((self.number, "closed", None))


def stacks(ranks: Sequence[Rank]) -> dict[int, str]:
    """The Python stack of each rank's main thread, or why there is none."""
    starts = {rank.number: rank.log.stat().st_size for rank in ranks}
    for rank in ranks:
        rank.process.send_signal(STACK_SIGNAL)
    deadline = time.monotonic() + STACK_S
    found: dict[int, str] = {}
    while len(found) < len(ranks) and time.monotonic() < deadline:
        time.sleep(0.1)
        texts = {rank.number: rank.log_text(starts[rank.number]) for rank in ranks}
        found = {number: text.rstrip() for number, text in texts.items() if text.strip()}
    return {rank.number: found.get(rank.number) or rank.state() for rank in ranks}


@dataclass
class Conversation:
    """One task on all ranks, or their start (no task): what each of them answered so far."""

    ranks: list[Rank]
    task: bytes | None
    results: dict[int, bytes] = field(default_factory=dict)
    raised: dict[int, Raised] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    _pending: dict[int, Rank] = field(default_factory=dict)
    _heard: dict[int, float] = field(default_factory=dict)

    @property
    def is_refusal(self) -> bool:
        """Whether what failed so far were InputErrors only."""
        refusals = [raised for raised in self.raised.values() if raised.is_input_error]
        return 0 < len(refusals) == len(self.failures)

    @property
    def is_refused_by_all(self) -> bool:
        """Whether every rank raised an InputError."""
        return self.is_refusal and len(self.failures) == len(self.ranks)

    def listen(self, timeout_s: float, silence_s: float) -> None:
        """Waits until every rank answered, or one failed and the others had time to say why."""
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        for rank in self.ranks:
            # A thread each, so that a rank that stops in the middle of a message blocks nobody.
            listener = threading.Thread(target=rank.listen, args=(self.task, events), daemon=True)
            rank.listener = listener
            listener.start()
        self._pending = {rank.number: rank for rank in self.ranks}
        now = time.monotonic()
        self._heard = dict.fromkeys(self._pending, now)
        deadline, settled = now + timeout_s, None
        while self._pending and (settled is None or now < settled):
            before = now
            with contextlib.suppress(queue.Empty):
                self._take(*events.get(timeout=TICK_S))
                while not events.empty():
                    self._take(*events.get())
            now = time.monotonic()
            if now - before > 1.0 + TICK_S:
                # We were stopped ourselves: what ranks said meanwhile is still to be read.
                self._heard = dict.fromkeys(self._pending, now)
            elif not self.failures:
                self._look_around(now, deadline, silence_s)
            if self.failures and settled is None:
                settled = now + (SETTLE_REFUSAL_S if self.is_refusal else SETTLE_S)

    def _take(self, number: int, kind: Kind, content: Any) -> None:
        self._heard[number] = time.monotonic()
        if kind == "warning" and content not in self.warnings:
            self.warnings.append(content)
        if kind in BEFORE_THE_ANSWER:
            return
        rank = self._pending.pop(number)
        if kind == "done":
            self.results[number] = content
        elif kind == "closed":
            self.failures.append(rank.death())
        else:
            raised = self.raised[number] = Raised(**content)
            follows = any(sign in raised.traceback for sign in CONSEQUENCES)
            summary = f"raised {raised.summary}"
            self.failures.append(Failure(number, summary, raised.traceback, raised.at, follows))

    def _look_around(self, now: float, deadline: float, silence_s: float) -> None:
        """Finds ranks that died without closing the connection, are silent, or are late."""
        quiet = {n: rank for n, rank in self._pending.items() if now - self._heard[n] > 1.5}
        for number, rank in quiet.items():
            if rank.process.poll() is not None:
                self.failures.append(rank.death())
                del self._pending[number]
        silences = [(rank, now - self._heard[n]) for n, rank in self._pending.items()]
        silent = [rank for rank, s in silences if s > silence_s or rank.is_stopped_after(s)]
        late = list(self._pending.values()) if now > deadline else []
        if self.failures or not (silent or late):
            return
        finished = f"; finished: {numbered(self.results)}" if self.results else ""
        stopped = {rank.number for rank in silent or late if rank.is_stopped()}
        for number, stack in stacks(silent or late).items():
            silence = f"gave no sign of life for {now - self._heard[number]:.0f} s"
            summary = silence if silent else "did not finish in time"
            summary += " (its process is stopped)" if number in stopped else ""
            follows = bool(stopped) and number not in stopped
            self.failures.append(
                Failure(
                    number, summary + finished, stack, time.time(), follows, is_loss=bool(silent)
                )
            )


def numbered(ranks: Iterable[int]) -> str:
    """Such as `rank 3` or `ranks 0, 2`."""
    numbers = sorted(ranks)
    return f"rank{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
