"""Who is taken in as a rank, and that nobody waits for those who aren't."""

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditplan.runtime.ranks import handshake
from ditplan.runtime.ranks.handshake import (
    ANSWER_BYTES,
    DIGEST_BYTES,
    MOST_STRANGERS,
    NONCE_BYTES,
    Reception,
    introduce,
)

KEY = b"k" * 32
HOST = "127.0.0.1"
LONG_S = 60.0


@pytest.fixture
def reception() -> Iterator[Reception]:
    with Reception(HOST, KEY, backlog=MOST_STRANGERS) as reception:
        yield reception


class Caller:
    """A rank that introduces itself, in a thread of its own."""

    def __init__(self, port: int, key: bytes, number: int) -> None:
        self.connection: Connection | None = None
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._call, args=(port, key, number), daemon=True)
        self._thread.start()

    def _call(self, port: int, key: bytes, number: int) -> None:
        try:
            self.connection = introduce((HOST, port), key, number)
        except (OSError, EOFError, AuthenticationError) as error:
            self.error = error

    def outcome(self) -> Connection | Exception:
        self._thread.join(LONG_S)
        assert not self._thread.is_alive()
        outcome = self.connection or self.error
        assert outcome is not None
        return outcome


def assert_was_let_in(caller: Caller) -> None:
    connection = caller.outcome()
    assert isinstance(connection, Connection)
    connection.close()


def arrived(reception: Reception, wanted: int) -> dict[int, Connection]:
    """So many ranks that were taken in, by number."""
    found: dict[int, Connection] = {}
    deadline = time.monotonic() + LONG_S
    while len(found) < wanted:
        assert time.monotonic() < deadline
        found |= dict(reception.arrivals(0.05))
    return found


def test_a_rank_is_known_by_its_number_and_can_be_talked_to(reception: Reception) -> None:
    callers = [Caller(reception.port, KEY, number) for number in (3, 0, 700)]
    pool_ends = arrived(reception, 3)
    assert pool_ends.keys() == {0, 3, 700}
    for caller, number in zip(callers, (3, 0, 700), strict=True):
        rank_end = caller.outcome()
        assert isinstance(rank_end, Connection)
        message = bytes(1_000_000) + str(number).encode()
        sender = threading.Thread(target=rank_end.send_bytes, args=(message,))
        sender.start()
        assert pool_ends[number].recv_bytes() == message
        sender.join(LONG_S)
        rank_end.close()
        pool_ends[number].close()


STRANGERS = {
    "silence": b"",
    "a few bytes": b"hi",
    "garbage": b"\x80\x04\x95 let me in" * 40,
    "a huge length": struct.pack("!i", -1) + struct.pack("!Q", 2**63 - 1),
    "a web browser": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 4,
}


@pytest.mark.parametrize("said", STRANGERS.values(), ids=STRANGERS.keys())
def test_strangers_neither_come_in_nor_are_waited_for(
    reception: Reception, said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handshake, "PATIENCE_S", 10 * LONG_S)
    with ExitStack() as stack:
        for _ in range(3):
            stranger = stack.enter_context(socket.create_connection((HOST, reception.port)))
            stranger.sendall(said)
        caller = Caller(reception.port, KEY, 1)
        arrived(reception, 1)[1].close()
        assert_was_let_in(caller)


def test_who_stays_silent_or_slow_is_turned_away(
    reception: Reception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handshake, "PATIENCE_S", 0.2)
    with socket.create_connection((HOST, reception.port)) as stranger:
        stranger.settimeout(LONG_S)
        heard = b""
        deadline = time.monotonic() + LONG_S
        while len(heard) < NONCE_BYTES:
            assert not list(reception.arrivals(0.01))
            heard += stranger.recv(NONCE_BYTES)
        is_open = True
        while is_open:
            assert time.monotonic() < deadline
            assert not list(reception.arrivals(0.01))
            try:
                stranger.sendall(b"x")
            except OSError:
                is_open = False


def test_a_flood_of_strangers_keeps_nobody_out(reception: Reception) -> None:
    with ExitStack() as stack:
        for _ in range(MOST_STRANGERS + 20):
            stack.enter_context(socket.create_connection((HOST, reception.port)))
            assert not list(reception.arrivals(0.05))
        caller = Caller(reception.port, KEY, 5)
        arrived(reception, 1)[5].close()
        assert_was_let_in(caller)


def test_a_rank_with_another_key_is_turned_away(reception: Reception) -> None:
    caller = Caller(reception.port, b"another key", 1)
    while caller.error is None:
        assert not list(reception.arrivals(0.05))
    assert isinstance(caller.outcome(), EOFError | ConnectionError)


def test_a_rank_that_reaches_somebody_else_tells_them_nothing(reception: Reception) -> None:
    with socket.create_server((HOST, 0)) as impostor:
        caller = Caller(impostor.getsockname()[1], KEY, 1)
        connected, _ = impostor.accept()
        with connected:
            connected.sendall(bytes(NONCE_BYTES))
            answer = b""
            while len(answer) < ANSWER_BYTES:
                answer += connected.recv(ANSWER_BYTES)
            connected.sendall(answer[-DIGEST_BYTES:])
            assert isinstance(caller.outcome(), AuthenticationError)
    # what it answered opens no door elsewhere: another challenge was meant
    with socket.create_connection((HOST, reception.port)) as stranger:
        stranger.settimeout(LONG_S)
        stranger.sendall(answer)
        heard: bytes | None = None
        while heard != b"":
            assert not list(reception.arrivals(0.05))
            try:
                heard = stranger.recv(64)
            except ConnectionError:
                heard = b""


@settings(max_examples=50)
@given(st.data())
def test_an_answer_that_was_changed_anywhere_is_no_answer(data: st.DataObject) -> None:
    number, challenge, own = 7, bytes(range(32)), bytes(range(32, 64))
    packed = handshake.NUMBER.pack(number) + own
    answer = packed + handshake._digest(KEY, "rank", challenge + packed)
    assert handshake._checked(KEY, challenge, answer)[0] == number
    bit = data.draw(st.integers(0, 8 * ANSWER_BYTES - 1))
    changed = bytearray(answer)
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(AuthenticationError):
        handshake._checked(KEY, challenge, bytes(changed))
