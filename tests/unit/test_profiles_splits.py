"""Sharing whole things out over ranks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditplan.profiles.splits import patch_bounds, split_bounds, split_sizes


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


@st.composite
def pictures_and_patches(draw: st.DrawFn) -> tuple[int, int, int]:
    patches = draw(st.integers(1, 64))
    return draw(st.integers(patches, 10_000)), draw(st.integers(0, 1_000)), patches


@given(pictures_and_patches())
def test_patches_follow_each_other_from_start_to_end_of_the_image(
    case: tuple[int, int, int],
) -> None:
    image, _, patches = case
    bounds = patch_bounds(*case)
    assert len(bounds) == patches
    assert all(start < end for start, end in bounds)
    assert [start for start, _ in bounds] == [0, *(end for _, end in bounds[:-1])]
    assert bounds[-1][1] == image


@given(pictures_and_patches())
def test_the_first_patch_and_its_text_are_as_long_as_the_others_where_that_can_be(
    case: tuple[int, int, int],
) -> None:
    image, text, patches = case
    first, *others = (end - start for start, end in patch_bounds(*case))
    if not others:
        assert first == image
        return
    assert max(others) - min(others) <= 1
    if (image + text) // patches > text:
        assert first + text <= min(others) <= max(others) <= first + text + 2
    else:
        assert first == 1


@pytest.mark.parametrize(
    ("image", "text", "patches", "bounds"),
    [
        (16, 4, 3, ((0, 2), (2, 9), (9, 16))),
        (16, 0, 4, ((0, 4), (4, 8), (8, 12), (12, 16))),
        (4, 100, 4, ((0, 1), (1, 2), (2, 3), (3, 4))),
        (9, 5, 1, ((0, 9),)),
    ],
)
def test_patches_of_small_pictures(
    image: int, text: int, patches: int, bounds: tuple[tuple[int, int], ...]
) -> None:
    assert patch_bounds(image, text, patches) == bounds


@pytest.mark.parametrize(("image", "patches"), [(3, 4), (0, 1), (5, 0), (5, -1)])
def test_a_patch_of_nothing_is_refused(image: int, patches: int) -> None:
    with pytest.raises(ValueError, match=f"{image} tokens can't be cut into {patches} patches"):
        patch_bounds(image, 2, patches)
