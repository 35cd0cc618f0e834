"""Sharing whole things out over ranks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditplan.profiles.splits import split_bounds, split_sizes


@st.composite
def totals_and_parts(draw: st.DrawFn) -> tuple[int, int]:
    parts = draw(st.integers(1, 64))
    return draw(st.integers(parts, 10_000)), parts


@given(totals_and_parts())
def test_shares_sum_to_the_whole_and_differ_by_one_at_most_longest_first(
    case: tuple[int, int],
) -> None:
    total, parts = case
    sizes = split_sizes(total, parts)
    assert len(sizes) == parts
    assert sum(sizes) == total
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
    assert list(sizes) == sorted(sizes, reverse=True)


@given(totals_and_parts())
def test_bounds_follow_each_other_from_start_to_end(case: tuple[int, int]) -> None:
    total, parts = case
    items: list[int] = []
    for part, size in enumerate(split_sizes(total, parts)):
        start, end = split_bounds(total, parts, part)
        assert end - start == size
        items += range(start, end)
    assert items == list(range(total))


def test_uneven_text_tokens_on_four_ranks() -> None:
    assert split_sizes(333, 4) == (84, 83, 83, 83)


@pytest.mark.parametrize(("total", "parts"), [(3, 4), (0, 1), (5, 0), (5, -1)])
def test_a_share_of_nothing_is_refused(total: int, parts: int) -> None:
    with pytest.raises(ValueError, match=f"{total} items can't be split over {parts} ranks"):
        split_sizes(total, parts)
