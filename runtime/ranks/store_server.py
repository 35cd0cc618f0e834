"""The store by which ranks find each other, as the command keeps it: requests in, answers out.

It means what `torch.distributed.HashStore` means, and waits for nobody: a request for keys that
aren't there yet is answered when they are. How long that may take, who asks decides.
"""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

WAITING = ("get", "multi_get", "wait")
"""Requests that are answered once all their keys are there."""


@dataclass(frozen=True)
class Request:
    """What a rank asks, by a number of its own: an operation and its arguments."""

    rank: int
    number: int
    operation: str
    arguments: tuple[Any, ...]

    @property
    def keys(self) -> list[str]:
        """The keys that it needs, where it is one that waits."""
        first = self.arguments[0]
        return [first] if isinstance(first, str) else list(first)


class StoreServer:
    """Keys and values, and who waits for which."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}
        self._waiting: list[Request] = []
        self._operations: dict[str, Callable[..., object]] = {
            "set": self._set,
            "add": self._add,
            "append": self._append,
            "compare_set": self._compare_set,
            "check": lambda keys: all(key in self._values for key in keys),
            "delete_key": lambda key: self._values.pop(key, None) is not None,
            "num_keys": lambda: len(self._values),
            "multi_set": self._multi_set,
            "get": lambda key: self._values[key],
            "multi_get": lambda keys: [self._values[key] for key in keys],
            "wait": lambda keys: None,
        }

    def answers(self, rank: int, message: bytes) -> list[tuple[int, bytes]]:
        """Takes a rank's request; gives the answers that are due now, with the ranks they are for.

        A request is a pickled `(number, operation, arguments)`, an answer a pickled
        `(number, value, error)`, in which `error` is None or the text of a `ValueError`.
        """
        request = Request(rank, *pickle.loads(message))
        due = [(rank, self._answer(request))] if self._is_ready(request) else []
        if not due:
            self._waiting.append(request)
        elif request.operation not in WAITING:
            ready = [one for one in self._waiting if self._is_ready(one)]
            self._waiting = [one for one in self._waiting if one not in ready]
            due += [(one.rank, self._answer(one)) for one in ready]
        return due

    def _is_ready(self, request: Request) -> bool:
        waits = request.operation in WAITING
        return not waits or all(key in self._values for key in request.keys)

    def _answer(self, request: Request) -> bytes:
        try:
            value = self._operations[request.operation](*request.arguments)
        except ValueError as error:
            return pickle.dumps((request.number, None, str(error)))
        return pickle.dumps((request.number, value, None))

    def _set(self, key: str, value: bytes) -> None:
        self._values[key] = value

    def _multi_set(self, keys: list[str], values: list[bytes]) -> None:
        self._values.update(zip(keys, values, strict=True))

    def _add(self, key: str, amount: int) -> int:
        total = int(self._values.get(key) or b"0") + amount
        self._values[key] = str(total).encode()
        return total

    def _append(self, key: str, value: bytes) -> None:
        self._values[key] = self._values.get(key, b"") + value

    def _compare_set(self, key: str, expected: bytes, wanted: bytes) -> bytes:
        found = self._values.get(key)
        if found is None and expected:
            return expected
        if found is None or found == expected:
            self._values[key] = wanted
        return self._values[key]
