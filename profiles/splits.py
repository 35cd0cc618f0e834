"""How whole things are shared out over ranks: the one rule that planner and runtime agree on."""


def split_sizes(total: int, parts: int) -> tuple[int, ...]:
    """Shares `total` items over `parts`, as evenly as can be, the first ones getting one more.

    >>> split_sizes(333, 4)
    (84, 83, 83, 83)

    Raises:
        ValueError: fewer than one part, or fewer items than parts.
    """
    if parts < 1 or total < parts:
        raise ValueError(
            f"{total} items can't be split over {parts} ranks: each needs at least one"
        )
    size, more = divmod(total, parts)
    return (size + 1,) * more + (size,) * (parts - more)


def split_bounds(total: int, parts: int, part: int) -> tuple[int, int]:
    """Start and end of the `part`-th share of `split_sizes(total, parts)`."""
    sizes = split_sizes(total, parts)
    start = sum(sizes[:part])
    return start, start + sizes[part]


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
