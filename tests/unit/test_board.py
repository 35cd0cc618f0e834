"""Messages between processes of one host by memory that they share."""

import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest

from ditplan.profiles.errors import ClusterError
from ditplan.runtime.admission import board
from ditplan.runtime.admission.board import CAPACITY, HEAD, SLOT, Board, Process, make_board


def boards(count: int) -> list[Board]:
    """One for each of so many, which stand for processes."""
    memory = mmap.mmap(-1, 2 * count * SLOT)
    return [Board(memory, me, [Process.here()] * count) for me in range(count)]


def test_all_get_the_messages_of_all_in_every_round() -> None:
    count, rounds = 3, 300

    def of(me: int, number: int) -> bytes:
        size = CAPACITY if number % 50 == me else 37 * number % 501
        return bytes([me]) * size

    def talk(me: int, mine: Board) -> list[list[bytes]]:
        return [mine.begin(of(me, number)).messages() for number in range(rounds)]

    with ThreadPoolExecutor(count) as pool:
        told = list(pool.map(talk, range(count), boards(count)))
    expected = [[of(me, number) for me in range(count)] for number in range(rounds)]
    assert told == [expected] * count


def test_a_message_that_is_too_long_is_refused_and_shows_nothing() -> None:
    first, second = boards(2)
    with pytest.raises(ValueError, match="16384 is the most"):
        first.begin(bytes(CAPACITY + 1))
    assert second.read(0, 1) is None


@pytest.mark.parametrize("place", [0, HEAD.size - 1, HEAD.size, HEAD.size + 4])
def test_what_is_half_written_is_not_read(place: int) -> None:
    memory = mmap.mmap(-1, 2 * SLOT)
    mine = Board(memory, 0, [Process.here()])
    mine.begin(b"whole")
    assert mine.read(0, 1) == b"whole"
    memory[SLOT + place] ^= 1
    assert mine.read(0, 1) is None


def test_who_has_ended_is_not_waited_for() -> None:
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = Process(other.pid, psutil.Process(other.pid).create_time())
    assert process.lives()
    mine = Board(mmap.mmap(-1, 4 * SLOT), 0, [Process.here(), process])
    posted = mine.begin(b"")
    assert not posted.came_within(0)
    other.communicate(b"\n")
    with pytest.raises(ClusterError, match=f"process {other.pid} has ended"):
        posted.messages()
    assert not Process(os.getpid(), 0.0).lives()


class Meeting:
    """Exchanges objects between threads, as ranks do."""

    def __init__(self, count: int) -> None:
        self._barrier = threading.Barrier(count, timeout=60)
        self._given: list[Any] = [None] * count

    def exchange(self, me: int) -> Callable[[Any], list[Any]]:
        """For one of them."""

        def exchange(mine: Any) -> list[Any]:
            self._given[me] = mine
            self._barrier.wait()
            found = list(self._given)
            self._barrier.wait()
            return found

        return exchange


def made(count: int) -> list[Board | None]:
    """What each of so many makes."""
    meeting = Meeting(count)
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda me: make_board(me, meeting.exchange(me)), range(count)))


def test_processes_of_one_host_share_memory_that_has_no_name() -> None:
    before = set(board.SHARED_MEMORY.iterdir())
    found = made(3)
    assert {path for path in board.SHARED_MEMORY.iterdir() if "ditplan" in path.name} <= before
    posted = [one.begin(bytes([me])) for me, one in enumerate(found) if one is not None]
    assert [one.messages() for one in posted] == [[b"\0", b"\1", b"\2"]] * 3


def test_without_memory_for_all_there_is_no_board(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    hosts = iter(["one", "other"])
    monkeypatch.setattr("platform.node", lambda: next(hosts))
    assert made(2) == [None, None]
    monkeypatch.undo()
    monkeypatch.setattr(board, "SHARED_MEMORY", tmp_path / "missing")
    assert made(2) == [None, None]
    assert not list(tmp_path.iterdir())
