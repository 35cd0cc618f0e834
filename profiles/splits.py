"""How whole things are shared out over ranks: the one rule that planner and runtime agree on."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

Segment = Annotated[str, Field(pattern="^(image|text)$")]
"""A piece of the sequence whose tokens are shared out by themselves."""


def split_sizes(total: int, parts: int, shares: Sequence[int] | None = None) -> tuple[int, ...]:
    """Shares `total` items over `parts`, each getting one at least: as evenly as can be, the first
    ones getting one more, or in proportion to `shares`.

    >>> split_sizes(333, 4)
    (84, 83, 83, 83)
    >>> split_sizes(333, 3, (3, 1, 2))
    (167, 55, 111)

    Raises:
        ValueError: fewer than one part, or fewer items than parts.
    """
    if parts < 1 or total < parts:
        raise ValueError(
            f"{total} items can't be split over {parts} ranks: each needs at least one"
        )
    if shares is None:
        size, more = divmod(total, parts)
        return (size + 1,) * more + (size,) * (parts - more)
    if len(shares) != parts or min(shares) < 1:
        raise ValueError(f"{parts} ranks can't have the shares {tuple(shares)}")
    whole = sum(shares)
    sizes = [max(1, total * share // whole) for share in shares]
    # what each has less than its share, exactly; the first ones count first
    lacks = [total * share - size * whole for share, size in zip(shares, sizes, strict=True)]
    missing = total - sum(sizes)
    if missing > 0:
        # who gets one more has no less than its share, so nobody gets two
        for part in sorted(range(parts), key=lambda part: -lacks[part])[:missing]:
            sizes[part] += 1
    for _ in range(-missing):
        able = [part for part in range(parts) if sizes[part] > 1]
        most = min(able, key=lacks.__getitem__)
        sizes[most] -= 1
        lacks[most] += whole
    return tuple(sizes)


def split_bounds(
    total: int, parts: int, part: int, shares: Sequence[int] | None = None
) -> tuple[int, int]:
    """Start and end of the `part`-th share of `split_sizes(total, parts, shares)`."""
    sizes = split_sizes(total, parts, shares)
    start = sum(sizes[:part])
    return start, start + sizes[part]


def head_shares(token_shares: Sequence[int] | None, ulysses: int) -> tuple[int, ...] | None:
    """The shares of heads of a ulysses group's ranks: those of the tokens that ranks of the same
    place in their groups hold together. So all members of a ring have the same heads.

    >>> head_shares((4, 2, 2, 1), ulysses=2)
    (6, 3)
    """
    if token_shares is None:
        return None
    return tuple(sum(token_shares[place::ulysses]) for place in range(ulysses))


def patch_bounds(image_tokens: int, text_tokens: int, patches: int) -> tuple[tuple[int, int], ...]:
    """Start and end of each patch of an image whose text goes with the first.

    The first patch takes fewer image tokens for it, so that all are about equally long; the others
    differ by one token at most.

    >>> patch_bounds(16, 4, 3)
    ((0, 2), (2, 9), (9, 16))

    Raises:
        ValueError: fewer than one patch, or fewer image tokens than patches.
    """
    if patches < 1 or image_tokens < patches:
        raise ValueError(
            f"{image_tokens} tokens can't be cut into {patches} patches: each needs at least one"
        )
    if patches == 1:
        return ((0, image_tokens),)
    fair = (image_tokens + text_tokens) // patches - text_tokens
    first = min(max(fair, 1), image_tokens - patches + 1)
    ends = [first]
    for size in split_sizes(image_tokens - first, patches - 1):
        ends.append(ends[-1] + size)
    return tuple(zip([0, *ends[:-1]], ends, strict=True))
