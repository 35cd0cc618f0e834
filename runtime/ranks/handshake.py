"""How a rank and the pool that started it know each other: both have a key that nobody else has.

The pool sends random bytes; the rank answers with its number, random bytes of its own and a digest
of all that under the key; the pool answers with another digest. What strangers send is taken in up
to the length of such an answer, which no word of theirs changes, and read as nothing but numbers
and bytes; and nobody waits for them.
"""

import contextlib
import hmac
import secrets
import selectors
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Literal, Self

PATIENCE_S = 5.0
"""How long whoever has connected may take to answer."""

PATIENCE_WITH_POOL_S = 60.0
"""How long a rank waits for the pool, which starts all ranks before it looks for answers."""

MOST_STRANGERS = 128
"""So many at most who have connected and not answered; the one who has waited longest goes."""

NONCE_BYTES = 32
DIGEST = "sha256"
DIGEST_BYTES = 32
NUMBER = struct.Struct("!I")
ANSWER_BYTES = NUMBER.size + NONCE_BYTES + DIGEST_BYTES


@dataclass(eq=False)
class _Stranger:
    """Somebody who has connected: what was asked, until when, and what came so far."""

    socket: socket.socket
    challenge: bytes
    deadline: float
    answer: bytearray = field(default_factory=bytearray)


class Reception:
    """Where ranks connect to; a context manager, which closes it.

    It listens on one address, and takes in those who have the key.
    """

    def __init__(self, address: str, key: bytes, backlog: int) -> None:
        """Listens on any free port of an address of this machine."""
        self._key = key
        self._listener = socket.create_server((address, 0), backlog=backlog)
        self._listener.setblocking(False)
        self._strangers: list[_Stranger] = []
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._listener.getsockname()[1])

    def arrivals(self, timeout_s: float) -> Iterator[tuple[int, Connection]]:
        """Ranks that have shown the key, by their number; waits so long for somebody to say
        something.
        """
        for key, _ in self._selector.select(timeout_s):
            if key.fileobj is self._listener:
                self._let_in()
            elif (arrived := self._listen_to(key.data)) is not None:
                yield arrived
        now = time.monotonic()
        for stranger in [one for one in self._strangers if one.deadline < now]:
            self._turn_away(stranger)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for stranger in list(self._strangers):
            self._turn_away(stranger)
        self._selector.close()
        self._listener.close()

    def _let_in(self) -> None:
        """Asks somebody new."""
        if len(self._strangers) >= MOST_STRANGERS:
            self._turn_away(self._strangers[0])
        with contextlib.suppress(OSError):
            connected, _ = self._listener.accept()
            connected.setblocking(False)
            challenge = secrets.token_bytes(NONCE_BYTES)
            stranger = _Stranger(connected, challenge, time.monotonic() + PATIENCE_S)
            self._strangers.append(stranger)
            self._selector.register(connected, selectors.EVENT_READ, stranger)
            try:
                connected.sendall(challenge)
            except OSError:
                self._turn_away(stranger)

    def _listen_to(self, stranger: _Stranger) -> tuple[int, Connection] | None:
        """Takes in what was sent; the rank that it came from, once it has shown the key."""
        if stranger not in self._strangers:
            return None
        missing = ANSWER_BYTES - len(stranger.answer)
        try:
            received = stranger.socket.recv(missing)
            stranger.answer += received
            if len(received) == missing:
                number, proof = _checked(self._key, stranger.challenge, bytes(stranger.answer))
                stranger.socket.sendall(proof)
                stranger.socket.setblocking(True)
                connection = Connection(stranger.socket.dup().detach())
                self._turn_away(stranger)
                return number, connection
        except BlockingIOError:
            return None
        except (OSError, AuthenticationError):
            received = b""
        if not received:
            self._turn_away(stranger)
        return None

    def _turn_away(self, stranger: _Stranger) -> None:
        """Closes this end of a connection; a descriptor that was made of it stays."""
        self._strangers.remove(stranger)
        self._selector.unregister(stranger.socket)
        stranger.socket.close()


def introduce(address: tuple[str, int], key: bytes, number: int) -> Connection:
    """Connects a rank to the pool that listens there.

    Raises:
        OSError: nobody listens, or nobody answers in time.
        EOFError: the pool, or whoever it is, has hung up.
        AuthenticationError: whoever listens doesn't have the key.
    """
    with socket.create_connection(address, timeout=PATIENCE_WITH_POOL_S) as connected:
        challenge, own = _received(connected, NONCE_BYTES), secrets.token_bytes(NONCE_BYTES)
        asked = challenge + NUMBER.pack(number) + own
        connected.sendall(NUMBER.pack(number) + own + _digest(key, "rank", asked))
        if not hmac.compare_digest(_received(connected, DIGEST_BYTES), _digest(key, "pool", asked)):
            raise AuthenticationError("whoever listens there didn't start this rank")
        connected.setblocking(True)
        return Connection(connected.dup().detach())


def _checked(key: bytes, challenge: bytes, answer: bytes) -> tuple[int, bytes]:
    """The number of the rank that answered so, and what shows it that the pool has the key.

    Raises:
        AuthenticationError: whoever it was doesn't have the key.
    """
    asked = challenge + answer[:-DIGEST_BYTES]
    if not hmac.compare_digest(answer[-DIGEST_BYTES:], _digest(key, "rank", asked)):
        raise AuthenticationError("whoever answered isn't a rank")
    return NUMBER.unpack_from(answer)[0], _digest(key, "pool", asked)


def _digest(key: bytes, who: Literal["rank", "pool"], asked: bytes) -> bytes:
    """What only who has the key can say; each side says its own, so none can be echoed."""
    return hmac.digest(key, who.encode() + asked, DIGEST)


def _received(connected: socket.socket, length: int) -> bytes:
    """So many bytes.

    Raises:
        EOFError: the other end has hung up.
    """
    received = bytearray()
    while len(received) < length:
        more = connected.recv(length - len(received))
        if not more:
            raise EOFError("the other end has hung up")
        received += more
    return bytes(received)
