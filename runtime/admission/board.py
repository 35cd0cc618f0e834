"""Short messages between processes of one host, by memory that they share.

A message by sockets wakes four threads on its way, which on an idle machine takes a millisecond;
here a process writes into its slots and looks into those of the others.
"""

import hashlib
import mmap
import os
import platform
import struct
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from ditplan.profiles.errors import ClusterError
from ditplan.runtime.groups import GROUP_TIMEOUT
from ditplan.runtime.ranks.folders import is_running
from ditplan.runtime.ranks.messages import RANK_IS_GONE

CAPACITY = 16 << 10
"""Bytes of the largest message."""

HEAD = struct.Struct("<QI8s")
"""Number of the round, length, and a checksum of both and the message: what is read while it is
being written doesn't match, whatever order a processor's stores become visible in.
"""

SLOT = HEAD.size + CAPACITY
SHARED_MEMORY = Path("/dev/shm")
EAGER_S = 2e-3
"""So long the processor is only yielded while others are waited for."""

SHORT_NAP_S, LONG_NAP_S = 1e-3, 2e-2
NAP_SHARE = 0.02
"""Naps grow with what was waited, so that long steps of the others cost no processor time."""

LIFE_S = 0.5
"""How often it is looked whether the others still live while they are waited for."""


class Process(NamedTuple):
    """A process among all that there are: it isn't another one by the same number."""

    pid: int
    started: float

    @classmethod
    def here(cls) -> "Process":
        """This one."""
        return cls(os.getpid(), psutil.Process().create_time())

    def lives(self) -> bool:
        """Whether it runs, or is stopped."""
        return is_running(self.pid, self.started)


class Board:
    """The slots of all ranks of a plan, two for each: nobody is more than one round ahead, as the
    next one begins when all messages of the last are there.
    """

    def __init__(self, memory: mmap.mmap, me: int, processes: Sequence[Process]) -> None:
        """`me` is the place of this process among them."""
        self._memory, self._me, self._processes = memory, me, processes
        self._round = 0

    def begin(self, message: bytes) -> "Posted":
        """Shows a message to all; all show one.

        Raises:
            ValueError: it is longer than `CAPACITY`.
        """
        if len(message) > CAPACITY:
            raise ValueError(f"a message of {len(message)} bytes, {CAPACITY} is the most")
        self._round += 1
        start = self._slot(self._me, self._round)
        self._memory[start + HEAD.size : start + HEAD.size + len(message)] = message
        check = _checksum(self._round, message)
        HEAD.pack_into(self._memory, start, self._round, len(message), check)
        return Posted(self, self._round)

    def read(self, place: int, number: int) -> bytes | None:
        """The message of one for a round, None while it isn't there."""
        start = self._slot(place, number)
        found, length, check = HEAD.unpack_from(self._memory, start)
        if found != number or length > CAPACITY:
            return None
        message = self._memory[start + HEAD.size : start + HEAD.size + length]
        return message if check == _checksum(number, message) else None

    def require_life(self, places: Sequence[int]) -> None:
        """Looks whether some processes still live.

        Raises:
            ClusterError: one doesn't.
        """
        for place in places:
            process = self._processes[place]
            if not process.lives():
                raise ClusterError(
                    f"{RANK_IS_GONE}: its process {process.pid} has ended; start the ranks again"
                )

    @property
    def size(self) -> int:
        """How many processes there are."""
        return len(self._processes)

    def _slot(self, place: int, number: int) -> int:
        return (2 * place + number % 2) * SLOT


class Posted:
    """A message that was shown, and those of the others, which may be to come."""

    def __init__(self, board: Board, number: int) -> None:
        self._board, self._number = board, number
        self._found: list[bytes | None] = [None] * board.size

    def came_within(self, seconds: float) -> bool:
        """Whether all messages are there; waits for so long at most.

        Raises:
            ClusterError: a process has ended that hasn't shown its own.
        """
        start = now = time.monotonic()
        looked = start
        while missing := self._missing():
            if now - start > seconds:
                return False
            waited = now - start
            nap = min(max(SHORT_NAP_S, NAP_SHARE * waited), LONG_NAP_S)
            time.sleep(0 if waited < EAGER_S else nap)
            now = time.monotonic()
            if now - looked > LIFE_S:
                # one may have shown its message and ended since
                missing = self._missing()
                self._board.require_life(missing)
                looked = now
        return True

    def messages(self) -> list[bytes]:
        """Those of all, in the order of their places.

        Raises:
            ClusterError: one of them has ended, or none came in `GROUP_TIMEOUT`.
        """
        if not self.came_within(GROUP_TIMEOUT.total_seconds()):
            raise ClusterError(
                f"other ranks of the plan weren't heard of in {GROUP_TIMEOUT}; start them again"
            )
        return [one for one in self._found if one is not None]

    def _missing(self) -> list[int]:
        for place, message in enumerate(self._found):
            if message is None:
                self._found[place] = self._board.read(place, self._number)
        return [place for place, message in enumerate(self._found) if message is None]


def _checksum(number: int, message: bytes) -> bytes:
    return hashlib.blake2b(
        number.to_bytes(8, "little") + message, digest_size=8, usedforsecurity=False
    ).digest()


def make_board(me: int, exchange: Callable[[Any], list[Any]]) -> Board | None:
    """A board for processes of one host; None, on all of them, where they don't share its memory.

    Collective. `exchange` gives what all of them give it, in the order of their places. The memory
    has no name any more when this returns: it goes with the last process.
    """
    offer = _offered(me == 0)
    offered: list[_Offer] = exchange(offer)
    opened: mmap.mmap | None = None
    try:
        if len({(one.host, one.processes) for one in offered}) == 1 and offered[0].path:
            opened = _opened(offered[0], len(offered))
        can_all = all(exchange(opened is not None))
    finally:
        if offer.path:
            Path(offer.path).unlink(missing_ok=True)
    return Board(opened, me, [one.process for one in offered]) if can_all and opened else None


class _Offer(NamedTuple):
    """What a process says of itself, and where the first one has put the memory."""

    host: str
    processes: str
    """The namespace in which numbers of processes are meant."""
    process: Process
    path: str
    token: bytes


def _offered(is_first: bool) -> _Offer:
    path, token = "", os.urandom(16)
    if is_first and SHARED_MEMORY.is_dir():
        try:
            descriptor, path = tempfile.mkstemp(prefix="ditplan-", dir=SHARED_MEMORY)
            with os.fdopen(descriptor, "wb") as file:
                file.write(token)
        except OSError:
            path = ""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        # without it numbers of processes can't be told apart: no two are alike
        namespace = token.hex()
    return _Offer(platform.node(), namespace, Process.here(), path, token)


def _opened(offer: _Offer, count: int) -> mmap.mmap | None:
    try:
        with open(offer.path, "r+b") as file:
            if file.read(len(offer.token)) != offer.token:
                return None
            size = 2 * count * SLOT
            # as much as all of them ask for: whoever comes first makes room
            os.posix_fallocate(file.fileno(), 0, size)
            return mmap.mmap(file.fileno(), size)
    except OSError:
        return None
