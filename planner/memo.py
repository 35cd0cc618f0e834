"""What was found before."""

from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Memo(dict[K, V]):
    """Results by all that they follow from. A key is a flat tuple of values, or one value: what is
    equal has equal results.

    `python -m benchmarks.memo_mutations` shows that no element of a key can be left out.
    """
