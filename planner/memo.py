"""What was found before."""

from functools import cached_property
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


T = TypeVar("T")


class KeyTuple(tuple[T, ...]):
    """A tuple whose hash is found once, for what is part of many keys."""

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return super().__hash__()


class Memo(dict[K, V]):
    """Results by all that they follow from. A key is a flat tuple of values, or one value: what is
    equal has equal results.

    `python -m benchmarks.memo_mutations` shows that no element of a key can be left out.
    """
