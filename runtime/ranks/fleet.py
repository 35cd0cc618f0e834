"""All agents of a pool: one thread exchanges frames with them, keeps the ranks' store and notices
who is gone.
"""

import contextlib
import json
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from ditplan.profiles.errors import ClusterError
from ditplan.runtime.ranks.agent_link import AgentLink
from ditplan.runtime.ranks.exchange import BEAT_S, SILENCE_S, Exchange
from ditplan.runtime.ranks.frames import NOBODY, Frame, Kind
from ditplan.runtime.ranks.host_facts import HostFacts
from ditplan.runtime.ranks.launchers import Launch
from ditplan.runtime.ranks.store_server import StoreServer

TICK_S = 0.2
ENDING_S = 6.0
"""How long agents may take to end their ranks, before what was started for them is ended."""

ROUTES_S = 5.0


@dataclass
class Process:
    """A rank's process as its agent last said: how it ended, if it has, the end of its log, and
    whether its host ended processes for lack of memory meanwhile.
    """

    code: int | None = None
    log_tail: str = ""
    is_stopped: bool = False
    host_lacked_memory: bool = False


class Event(NamedTuple):
    """Something that happened: what a rank said, or a change of a rank's or an agent's state."""

    rank: int | None
    said: bytes | None


class Fleet:
    """The agents, started one on each host; ended by `end`, and when this process is gone."""

    def __init__(self, launches: Mapping[str, Launch], environment: Mapping[str, str]) -> None:
        """Starts the agents; `launches` by what messages call the hosts, in their order.

        Raises:
            ClusterError: a program that starts them isn't there.
        """
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.processes: dict[int, Process] = {}
        self.pids: dict[int, int] = {}
        self.links: list[AgentLink] = []
        self._replies: queue.SimpleQueue[tuple[AgentLink, Frame]] = queue.SimpleQueue()
        self._orders: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._store = StoreServer()
        self._exchange = Exchange()
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._woken, False)
        self._exchange.watch(self._woken)
        self._is_ending = self._is_over = False
        self._thread = threading.Thread(target=self._exchange_frames, name="fleet", daemon=True)
        try:
            for name, launch in launches.items():
                self._start(name, launch, environment)
        except OSError as error:
            self.end(keeps_logs=False)
            raise ClusterError(f"no agent can be started: {error}") from None
        self._thread.start()

    @property
    def is_open(self) -> bool:
        """Whether it hasn't been ended."""
        return not self._is_ending

    def link_of(self, rank: int) -> AgentLink:
        """The agent that a rank was started by."""
        return next(link for link in self.links if rank in link.ranks)

    def wait_for(self, holds: Callable[[], bool], deadline: float) -> None:
        """Waits until something holds, or until a deadline of `time.monotonic`; whoever calls it
        looks which it was.
        """
        said: list[Event] = []
        while not holds() and time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                event = self.events.get(timeout=TICK_S)
                said += [event] if event.said is not None else []
        for event in said:
            self.events.put(event)

    def routes(self, addresses: Sequence[str]) -> list[dict[str, str | None]]:
        """From which of its own addresses each host reaches these; {} of one that is silent."""
        asked = [link for link in self.links if link.lost is None]
        for link in asked:
            self.send(link, Frame(Kind.ROUTES, NOBODY, json.dumps(list(addresses)).encode()))
        found = {link: json.loads(frame.payload) for link, frame in self._answers(asked, ROUTES_S)}
        return [found.get(link, {}) for link in self.links]

    def send(self, link: AgentLink, frame: Frame) -> None:
        """Sends an agent a frame, in the order of these calls; none when all have ended."""
        if self._is_over:
            return
        self._orders.put(partial(link.wire.send, frame))
        os.write(self._wake, b"!")

    def send_task(self, task: bytes) -> None:
        """Sends all ranks a task; each host gets it once."""
        for link in self.links:
            if link.lost is None:
                self.send(link, Frame(Kind.TASK, NOBODY, task))

    def look(self, ranks: Iterable[int], what: str, patience_s: float) -> dict[int, str]:
        """The `stack` or the `log` of ranks, as text, of those whose agents answer in time."""
        asked = []
        for rank in ranks:
            link = self.link_of(rank)
            if link.lost is None and self.is_open:
                asked.append(link)
                self.send(link, Frame(Kind.LOOK, rank, json.dumps(what).encode()))
        return {
            frame.rank: frame.payload.decode(errors="replace")
            for _, frame in self._answers(asked, patience_s)
        }

    def end(self, *, keeps_logs: bool) -> None:
        """Has all agents end their ranks and themselves, and ends what was started for them."""
        if self._is_ending:
            return
        self._is_ending = True
        payload = json.dumps({"keeps_logs": keeps_logs}).encode()
        for link in self.links:
            self.send(link, Frame(Kind.END, NOBODY, payload))
        if not self._thread.is_alive():
            self._follow_orders()
        deadline = time.monotonic() + ENDING_S
        for link in self.links:
            link.end(deadline - time.monotonic())
        self._is_over = True
        if self._thread.is_alive():
            self._thread.join()
        self._exchange.close()
        for descriptor in (self._woken, self._wake):
            os.close(descriptor)

    def _start(self, name: str, launch: Launch, environment: Mapping[str, str]) -> None:
        link = AgentLink.start(name, launch, environment)
        self.links.append(link)
        self._exchange.add(link.wire, partial(self._take, link), partial(self._lose, link))

    def _answers(
        self, asked: Sequence[AgentLink], patience_s: float
    ) -> list[tuple[AgentLink, Frame]]:
        deadline = time.monotonic() + patience_s
        found: list[tuple[AgentLink, Frame]] = []
        while len(found) < len(asked) and (left := deadline - time.monotonic()) > 0:
            try:
                found.append(self._replies.get(timeout=left))
            except queue.Empty:
                break
        return found

    # What follows is done by the thread.

    def _exchange_frames(self) -> None:
        beat_at = 0.0
        while not self._is_over:
            self._exchange.turn(TICK_S)
            self._follow_orders()
            now = time.monotonic()
            if now - beat_at >= BEAT_S:
                beat_at = now
                for link in self.links:
                    self._beat(link, now)

    def _follow_orders(self) -> None:
        while not self._orders.empty():
            self._orders.get()()

    def _beat(self, link: AgentLink, now: float) -> None:
        if link.lost is not None:
            return
        link.wire.send(Frame(Kind.BEAT, NOBODY))
        # until it has said hello, it is the program that starts it who may take its time
        if link.facts is not None and now - link.wire.heard_at > SILENCE_S:
            self._exchange.drop(link.wire)
            link.is_silent = True
            self._tell_lost(
                link, f"its agent gave no sign of life for {now - link.wire.heard_at:.0f} s"
            )

    def _take(self, link: AgentLink, frame: Frame) -> None:
        if frame.kind == Kind.ASKED:
            for rank, answer in self._store.answers(frame.rank, frame.payload):
                self.link_of(rank).wire.send(Frame(Kind.ANSWER, rank, answer))
        elif frame.kind == Kind.SAID:
            self.events.put(Event(frame.rank, frame.payload))
        elif frame.kind in (Kind.SEEN, Kind.ROUTES):
            self._replies.put((link, frame))
        elif frame.kind == Kind.REFUSED:
            self._tell_lost(link, frame.payload.decode(errors="replace"))
        elif frame.kind != Kind.BEAT:
            self._note(link, frame)
            self.events.put(Event(None, None))

    def _note(self, link: AgentLink, frame: Frame) -> None:
        """Keeps what an agent says of its host and of its ranks' processes."""
        if frame.kind == Kind.HELLO:
            link.facts = HostFacts.from_json(frame.payload)
            return
        told = json.loads(frame.payload)
        if frame.kind == Kind.STARTED:
            link.folder = told["folder"]
            self.pids |= {int(rank): process for rank, process in told["processes"].items()}
        elif frame.kind == Kind.STATE:
            process = self.processes[frame.rank]
            process.is_stopped = told.get("is_stopped", process.is_stopped)
            process.log_tail = told.get("tail", "")
            process.host_lacked_memory = told.get("host_lacked_memory", False)
            process.code = told.get("code")

    def _lose(self, link: AgentLink, seen: str) -> None:
        if not self._is_ending:
            self._tell_lost(link, link.why_it_ended(seen))

    def _tell_lost(self, link: AgentLink, why: str) -> None:
        # what came first is the cause
        link.lost = link.lost or why
        self.events.put(Event(None, None))
