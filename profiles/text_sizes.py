"""Sizes that texts are rounded up to, so that not every length is compiled and captured."""

from collections.abc import Callable, Mapping, Sequence

from ditplan.profiles.errors import Command, InputError, Setting

MOST_SIZES = 8
"""Each is compiled and captured for each size of a picture."""

MOST_LONGER = 0.02
"""By how much longer rounding up may have a request take, on average."""

GRAIN = 32
"""Tokens between the sizes that are compared: matrix units and attention kernels have tiles."""


def size_for(sizes: Sequence[int], tokens: int) -> int:
    """The size to which a text of so many tokens is rounded up.

    Raises:
        InputError: it is longer than all of them.
    """
    found = next((size for size in sizes if size >= tokens), None)
    if found is None:
        raise InputError(
            f"the text has {tokens} tokens, the plan serves texts of up to {max(sizes)}; shorten "
            "it, or tune for longer ones: `",
            Command("tune", (Setting("text_tokens", tokens),)),
            "`",
        )
    return found


def choose_sizes(lengths: Mapping[int, float], step_s: Callable[[int], float]) -> tuple[int, ...]:
    """The fewest sizes by which a request takes at most `MOST_LONGER` more time, on average, and of
    as many sizes those with the least; no more than `MOST_SIZES`.

    `lengths` says how often texts of so many tokens come, `step_s` what a step takes with a text of
    this size.
    """
    longest = -(-max(lengths) // GRAIN) * GRAIN
    candidates = range(GRAIN, longest + 1, GRAIN)
    costs_s = [step_s(size) for size in candidates]
    weights = [0.0] * len(candidates)
    for length, weight in lengths.items():
        weights[max(0, length - 1) // GRAIN] += weight
    own_s = sum(weight * cost_s for weight, cost_s in zip(weights, costs_s, strict=True))
    # by the index of the largest size: what texts of up to that size take, and the sizes
    best: dict[int, tuple[float, tuple[int, ...]]] = {-1: (0.0, ())}
    chosen: tuple[int, ...] = (longest,)
    for _ in range(min(MOST_SIZES, len(candidates))):
        best = {
            last: min(
                (
                    before_s + costs_s[last] * sum(weights[largest + 1 : last + 1]),
                    (*sizes, candidates[last]),
                )
                for largest, (before_s, sizes) in best.items()
                if largest < last
            )
            for last in range(len(candidates))
            if min(best) < last
        }
        taken_s, chosen = best[len(candidates) - 1]
        if taken_s <= (1 + MOST_LONGER) * own_s:
            break
    return chosen
