"""In how many pairs the one that was measured faster is predicted to be."""

import itertools
from collections.abc import Iterable


def in_order(seconds: Iterable[tuple[float, float]], apart: float = 0.0) -> tuple[int, int]:
    """Of the pairs measured more than a share `apart`, how many are predicted in order; and how
    many there are. Of each plan its measured and its predicted seconds.
    """
    right = pairs = 0
    for one, other in itertools.combinations(seconds, 2):
        (faster_s, faster_predicted_s), (slower_s, slower_predicted_s) = sorted((one, other))
        if slower_s > (1 + apart) * faster_s:
            pairs += 1
            right += faster_predicted_s < slower_predicted_s
    return right, pairs
