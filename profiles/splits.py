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
