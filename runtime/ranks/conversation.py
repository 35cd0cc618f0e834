"""The command's end of its talk with the ranks: what they answer, and how they fail."""

import contextlib
import pickle
import queue
import signal
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ditplan.runtime.ranks.agent_link import AgentLink
from ditplan.runtime.ranks.fleet import Event, Fleet, Process
from ditplan.runtime.ranks.messages import RANK_IS_GONE, Raised
from ditplan.runtime.ranks.seat import STACK_S

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
    RANK_IS_GONE,
)

ANSWER_S = 3.0
"""How much longer than a stack may take its way from another host may take."""


@dataclass(frozen=True)
class Failure:
    """What went wrong on one rank, in a line and in detail; `at` is in seconds since 1970.

    `is_loss` says that its process died or went silent, or its host did.
    """

    rank: int
    summary: str
    details: str
    at: float
    is_consequence: bool = False
    is_loss: bool = False


@dataclass
class Conversation:
    """One task on all ranks, or their start (no task): what each of them answered so far."""

    fleet: Fleet
    task: bytes | None
    results: dict[int, bytes] = field(default_factory=dict)
    raised: dict[int, Raised] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    _pending: set[int] = field(default_factory=set)
    _lost: set[int] = field(default_factory=set)
    _heard: dict[int, float] = field(default_factory=dict)

    @property
    def is_refusal(self) -> bool:
        """Whether what failed so far were InputErrors only."""
        refusals = [raised for raised in self.raised.values() if raised.is_input_error]
        return 0 < len(refusals) == len(self.failures)

    @property
    def is_refused_by_all(self) -> bool:
        """Whether every rank raised an InputError."""
        return self.is_refusal and len(self.failures) == len(self.fleet.processes)

    def listen(self, timeout_s: float, silence_s: float) -> None:
        """Waits until every rank answered, or one failed and the others had time to say why."""
        if self.task is not None:
            self.fleet.send_task(self.task)
        self._pending = set(self.fleet.processes)
        now = time.monotonic()
        self._heard = dict.fromkeys(self._pending, now)
        deadline, settled = now + timeout_s, None
        self._note_the_lost()
        while self._pending and (settled is None or now < settled):
            before = now
            with contextlib.suppress(queue.Empty):
                self._take(self.fleet.events.get(timeout=TICK_S))
                while not self.fleet.events.empty():
                    self._take(self.fleet.events.get())
            now = time.monotonic()
            if now - before > 1.0 + TICK_S:
                # We were stopped ourselves: what ranks said meanwhile is still to be read.
                self._heard = dict.fromkeys(self._pending, now)
            elif not self.failures:
                self._look_around(now, deadline, silence_s)
            if self.failures and settled is None:
                settled = now + (SETTLE_REFUSAL_S if self.is_refusal else SETTLE_S)

    def _take(self, event: Event) -> None:
        if event.rank is None or event.said is None:
            self._note_the_lost()
            return
        number = event.rank
        saying, content = pickle.loads(event.said)
        self._heard[number] = time.monotonic()
        if saying == "warning" and content not in self.warnings:
            self.warnings.append(content)
        if saying == "done":
            self._pending.discard(number)
            self.results[number] = content
        elif saying == "failed":
            self._pending.discard(number)
            raised = self.raised[number] = Raised(**content)
            follows = any(sign in raised.traceback for sign in CONSEQUENCES)
            summary = f"raised {raised.summary}"
            self.failures.append(Failure(number, summary, raised.traceback, time.time(), follows))

    def _note_the_lost(self) -> None:
        """Finds ranks whose process has ended or whose host is lost, answered or not: no task comes
        to its end without them.
        """
        for link in self.fleet.links:
            for number in [rank for rank in link.ranks if rank not in self._lost]:
                process = self.fleet.processes[number]
                if process.code is not None:
                    self._lose(number, _ending(process), process.log_tail)
                elif link.lost is not None:
                    self._lose(number, f"lost: {link.lost}", "")

    def _lose(self, number: int, summary: str, details: str) -> None:
        self._lost.add(number)
        self._pending.discard(number)
        self.failures.append(Failure(number, summary, details, time.time(), is_loss=True))

    def _look_around(self, now: float, deadline: float, silence_s: float) -> None:
        """Finds ranks that are silent or late."""
        silences = {number: now - self._heard[number] for number in sorted(self._pending)}
        processes = self.fleet.processes
        silent = [
            number
            for number, silence in silences.items()
            # longer than a debugger's glance takes
            if silence > silence_s or (silence > STOPPED_SILENCE_S and processes[number].is_stopped)
        ]
        late = list(silences) if now > deadline else []
        if not (silent or late):
            return
        finished = ""
        if self.results:
            finished = f"; finished: {placed(self.fleet.links, self.results)}"
        stacks = self._stacks(silent or late)
        # what agents have said by now: a rank that is stopped gives no stack
        stopped = {number for number in silences if processes[number].is_stopped}
        for number, stack in stacks.items():
            silence = f"gave no sign of life for {silences[number]:.0f} s"
            summary = silence if silent else "did not finish in time"
            summary += " (its process is stopped)" if number in stopped else ""
            follows = bool(stopped) and number not in stopped
            self.failures.append(
                Failure(
                    number, summary + finished, stack, time.time(), follows, is_loss=bool(silent)
                )
            )

    def _stacks(self, ranks: Sequence[int]) -> dict[int, str]:
        """The Python stack of each rank's main thread, or why there is none."""
        found = self.fleet.look(ranks, "stack", STACK_S + ANSWER_S)
        return {rank: found.get(rank, "Its host gave no answer.") for rank in ranks}


def placed(links: Sequence[AgentLink], ranks: Iterable[int]) -> str:
    """Such as `rank 3` or `ranks 0, 2`, with their hosts where those aren't this machine alone."""
    wanted = set(ranks)
    if [link.launch.launcher for link in links] == ["direct"]:
        return numbered(wanted)
    of_hosts = [(link.name, wanted.intersection(link.ranks)) for link in links]
    return "; ".join(f"{name}: {numbered(here)}" for name, here in of_hosts if here)


def numbered(ranks: Iterable[int]) -> str:
    """Such as `rank 3` or `ranks 0, 2`."""
    numbers = sorted(ranks)
    return f"rank{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def _ending(process: Process) -> str:
    """How a process that has ended did so."""
    code = process.code or 0
    if code >= 0:
        return f"exited with code {code}"
    ended = f"died of {signal.Signals(-code).name}"
    if code == -signal.SIGKILL and process.host_lacked_memory:
        ended += " (its host has ended a process for lack of memory)"
    return ended
