"""A rank's store: what it sets and asks goes by the rank's line to the command, which keeps it.

No port is opened for it, so nobody but the ranks can write into it. `TCPStore` listens on all
interfaces, and believes whoever connects.
"""

import itertools
import pickle
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from torch.distributed import DistStoreError, Store  # type: ignore[attr-defined]

from ditplan.runtime.ranks.frames import Frame, Kind, Line

SOON_S = 60.0
"""How long the command may take to answer what needs no other rank."""


@dataclass
class _Asked:
    """A question on its way, and what was answered."""

    done: threading.Event = field(default_factory=threading.Event)
    value: Any = None
    error: str | None = None


class RelayedStore(Store):
    """The store of one rank. Who makes a process group of it keeps it: torch lets it go.

    Its own methods raise DistStoreError where an answer doesn't come in time, and ValueError where
    a number is added to what is none.
    """

    def __init__(self, line: Line, rank: int, timeout: timedelta) -> None:
        super().__init__()
        self.timeout: timedelta
        self.set_timeout(timeout)
        self._line = line
        self._rank = rank
        self._numbers = itertools.count()
        self._asked: dict[int, _Asked] = {}

    def take(self, answer: bytes) -> None:
        """Takes an answer; called by the thread that listens."""
        number, value, error = pickle.loads(answer)
        asked = self._asked.pop(number, None)
        # one that came too late is nobody's
        if asked is not None:
            asked.value, asked.error = value, error
            asked.done.set()

    def clone(self) -> "RelayedStore":
        """Itself: threads may share it."""
        return self

    def set(self, key: str, value: str | bytes) -> None:
        """Sets a key."""
        self._ask("set", key, _bytes(value))

    def multi_set(self, keys: Sequence[str], values: Sequence[str | bytes]) -> None:
        """Sets several keys at once."""
        self._ask("multi_set", list(keys), [_bytes(value) for value in values])

    def get(self, key: str) -> bytes:
        """The value of a key, once there is one."""
        return bytes(self._wait("get", key, [key]))

    def multi_get(self, keys: Sequence[str]) -> list[bytes]:
        """The values of several keys, once there are all."""
        return list(self._wait("multi_get", list(keys), keys))

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        """Waits until all keys are there."""
        self._wait("wait", list(keys), keys, timeout)

    def add(self, key: str, value: int) -> int:
        """Adds to a number, which is 0 before it is first added to; the sum."""
        return int(self._ask("add", key, value))

    def append(self, key: str, value: str | bytes) -> None:
        """Puts a value behind what a key has."""
        self._ask("append", key, _bytes(value))

    def compare_set(self, key: str, expected: str | bytes, wanted: str | bytes) -> bytes:
        """Sets a key that has an expected value, or none while "" is expected; its value then."""
        return bytes(self._ask("compare_set", key, _bytes(expected), _bytes(wanted)))

    def check(self, keys: Sequence[str]) -> bool:
        """Whether all keys are there."""
        return bool(self._ask("check", list(keys)))

    def delete_key(self, key: str) -> bool:
        """Takes a key out; whether it was there."""
        return bool(self._ask("delete_key", key))

    def num_keys(self) -> int:
        """How many keys there are."""
        return int(self._ask("num_keys"))

    # torch asks a store written in Python by these names
    deleteKey = delete_key
    getNumKeys = num_keys

    def has_extended_api(self) -> bool:
        """Yes: `append`, `multi_get` and `multi_set`."""
        return True

    def _wait(
        self,
        operation: str,
        argument: object,
        keys: Sequence[str],
        timeout: timedelta | None = None,
    ) -> Any:
        patience_s = (timeout or self.timeout).total_seconds()
        return self._answer((operation, (argument,)), patience_s, ", ".join(keys))

    def _ask(self, operation: str, *arguments: object) -> Any:
        return self._answer((operation, arguments), SOON_S, operation)

    def _answer(
        self, question: tuple[str, tuple[object, ...]], patience_s: float, what: str
    ) -> Any:
        number, asked = next(self._numbers), _Asked()
        self._asked[number] = asked
        self._line.send(Frame(Kind.ASKED, self._rank, pickle.dumps((number, *question))))
        if not asked.done.wait(patience_s):
            self._asked.pop(number, None)
            raise DistStoreError(f"wait timeout after {patience_s:.0f} s: {what}")
        if asked.error is not None:
            raise ValueError(asked.error)
        return asked.value


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)
