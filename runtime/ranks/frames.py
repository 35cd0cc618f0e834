"""What command, agents and ranks say to each other: frames of a kind, a rank and bytes.

A frame is a header, which says how long it is, and its payload; nothing here looks into payloads.
They go over pipes and socket pairs that their two ends were born with, never over a port. `Wire` is
for who listens to several at once and may wait for none, `Line` for a rank, which has one.
"""

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

HEADER = struct.Struct("!BIQ")
GREETING = b"\x00ditplan frames 1\n"
"""What an agent says first. Before it may stand what the shell of a login writes."""

MOST_PREAMBLE_BYTES = 1 << 16
MOST_PAYLOAD_BYTES = 1 << 40
CHUNK_BYTES = 1 << 20
NOBODY = 0xFFFF_FFFF
"""The rank of a frame that is of a host, not of a rank."""


class Kind(IntEnum):
    """What a frame is; who says it, and what its payload is."""

    BEAT = 1
    """Command and agent, each second: nothing."""
    HELLO = 2
    """Agent: what its host is, as JSON."""
    SETUP = 3
    """Command: what ranks to start, as JSON."""
    STARTED = 4
    """Agent: the process of each rank and the folder of their logs, as JSON."""
    REFUSED = 5
    """Agent: why it can't do what it was told, as text."""
    TASK = 6
    """Command, to all ranks of a host: a pickled task, or nothing: they shall leave."""
    SAID = 7
    """A rank: a pickled pair of kind and content."""
    ASKED = 8
    """A rank: a request to the store."""
    ANSWER = 9
    """Command, to a rank: the store's answer."""
    STATE = 10
    """Agent, on a rank: that its process stopped, runs again or ended, as JSON."""
    LOOK = 11
    """Command, on a rank: asks for its log from a byte on, or for its stack, as JSON."""
    SEEN = 12
    """Agent, on a rank: what was asked for, as text."""
    END = 13
    """Command: the ranks shall end, and the agent; whether logs are kept, as JSON."""
    ROUTES = 14
    """Command: addresses; agent: from which of its own it reaches each, as JSON."""


KINDS = frozenset(map(int, Kind))


class Frame(NamedTuple):
    """One thing said, by or to or of `rank`."""

    kind: Kind
    rank: int
    payload: bytes = b""

    def encoded(self) -> bytes:
        """Header and payload."""
        return HEADER.pack(self.kind, self.rank, len(self.payload)) + self.payload


class FrameError(OSError):
    """What came isn't a frame: the other end isn't what it should be."""


class FrameReader:
    """Takes bytes as they come and gives the frames that are complete."""

    def __init__(self, *, after_greeting: bool = False) -> None:
        """With `after_greeting`, frames begin behind a `GREETING`; what comes before it is kept in
        `preamble`.
        """
        self._buffer = bytearray()
        self._awaits_greeting = after_greeting
        self.preamble = b""

    @property
    def left(self) -> int:
        """How many bytes of a frame that isn't complete have come."""
        return len(self._buffer)

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Takes some bytes; gives the frames that end in them.

        Raises:
            FrameError: an unknown kind, an impossible length, or no greeting where one must be.
        """
        self._buffer += data
        if self._awaits_greeting and not self._greeted():
            return
        while len(self._buffer) >= HEADER.size:
            kind, rank, length = HEADER.unpack_from(self._buffer)
            if kind not in KINDS or length > MOST_PAYLOAD_BYTES:
                raise FrameError(f"no frame: {bytes(self._buffer[:40])!r}")
            end = HEADER.size + length
            if len(self._buffer) < end:
                return
            payload = bytes(memoryview(self._buffer)[HEADER.size : end])
            del self._buffer[:end]
            yield Frame(Kind(kind), rank, payload)

    def _greeted(self) -> bool:
        before, greeting, after = self._buffer.partition(GREETING)
        if not greeting:
            self.preamble = bytes(self._buffer[:MOST_PREAMBLE_BYTES])
            if len(self._buffer) > MOST_PREAMBLE_BYTES:
                raise FrameError("no greeting")
            return False
        self.preamble = bytes(before)
        self._buffer = bytearray(after)
        self._awaits_greeting = False
        return True


class Wire:
    """Both directions between two processes, by descriptors; waits for nothing.

    `heard_at` is when bytes last came, in seconds of `time.monotonic`: a long frame that still
    arrives is a sign of life, too.
    """

    def __init__(self, incoming: int, outgoing: int, *, after_greeting: bool = False) -> None:
        """Takes two descriptors, which mustn't be the same, and makes them wait for nothing."""
        self.incoming, self.outgoing = incoming, outgoing
        os.set_blocking(incoming, False)
        os.set_blocking(outgoing, False)
        self.heard_at = time.monotonic()
        self._reader = FrameReader(after_greeting=after_greeting)
        self._unsent: list[memoryview] = []
        self._is_closed = False

    @property
    def preamble(self) -> bytes:
        """What came before the greeting."""
        return self._reader.preamble

    @property
    def descriptors(self) -> tuple[int, int]:
        """What it reads and writes."""
        return self.incoming, self.outgoing

    @property
    def has_unsent(self) -> bool:
        """Whether there is more to write than the other end has taken so far."""
        return bool(self._unsent)

    def receive(self) -> list[Frame]:
        """The frames that have come by now.

        Raises:
            EOFError: the other end has closed, and nothing is left to be read.
            OSError: the connection is broken, or what came is no frame.
        """
        with contextlib.suppress(BlockingIOError):
            data = os.read(self.incoming, CHUNK_BYTES)
            if not data:
                raise EOFError("the other end has closed")
            self.heard_at = time.monotonic()
            return list(self._reader.feed(data))
        return []

    def send(self, frame: Frame) -> None:
        """Writes as much as the other end takes now; `flush` writes the rest."""
        self.send_bytes(frame.encoded())

    def send_bytes(self, data: bytes) -> None:
        """As `send`, of bytes as they are."""
        if self._is_closed:
            return
        self._unsent.append(memoryview(data))
        if len(self._unsent) == 1:
            self.flush()

    def flush(self) -> None:
        """Goes on writing what is left to be written. That the other end is gone, `receive` says:
        it may have said why.
        """
        while self._unsent:
            try:
                written = os.write(self.outgoing, self._unsent[0][:CHUNK_BYTES])
            except BlockingIOError:
                return
            except OSError:
                self._unsent.clear()
                return
            rest = self._unsent[0][written:]
            self._unsent[:1] = [rest] if rest else []

    def close(self) -> None:
        """Closes both descriptors; what is sent from then on goes nowhere."""
        self._is_closed = True
        self._unsent.clear()
        os.close(self.incoming)
        os.close(self.outgoing)


class Line:
    """A rank's end of its socket pair: one thread listens, any thread speaks."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._reader = FrameReader()
        self._speaking = threading.Lock()

    def frames(self) -> Iterator[Frame]:
        """The frames that come, until the other end closes.

        Raises:
            OSError: the connection is broken, or what came is no frame.
        """
        while data := self._connection.recv(CHUNK_BYTES):
            yield from self._reader.feed(data)

    def send(self, frame: Frame) -> None:
        """Sends a frame, whole.

        Raises:
            OSError: the other end is gone.
        """
        with self._speaking:
            self._connection.sendall(frame.encoded())
