"""Sharing whole things out over ranks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditplan.profiles.splits import head_shares, patch_bounds, split_bounds, split_sizes


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
def pictures_and_patches(draw: st.DrawFn, fewest: int = 1) -> tuple[int, int, int]:
    patches = draw(st.integers(fewest, 64))
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


@given(pictures_and_patches(fewest=2))
def test_the_first_patch_and_its_text_are_as_long_as_the_others_where_that_can_be(
    case: tuple[int, int, int],
) -> None:
    image, text, patches = case
    first, *others = (end - start for start, end in patch_bounds(*case))
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


@st.composite
def totals_and_shares(draw: st.DrawFn) -> tuple[int, tuple[int, ...]]:
    shares = tuple(draw(st.lists(st.integers(1, 400), min_size=1, max_size=16)))
    return draw(st.integers(len(shares), 10_000)), shares


@given(totals_and_shares())
def test_sizes_are_nearest_to_their_shares_and_nobody_has_none(
    case: tuple[int, tuple[int, ...]],
) -> None:
    total, shares = case
    sizes = split_sizes(total, len(shares), shares)
    assert sum(sizes) == total
    assert min(sizes) >= 1
    exact = [total * share / sum(shares) for share in shares]
    if min(exact) >= 1:
        assert all(abs(size - own) < 1 for size, own in zip(sizes, exact, strict=True))


@given(totals_and_parts(), st.integers(1, 5))
def test_equal_shares_are_as_none_at_all(case: tuple[int, int], share: int) -> None:
    total, parts = case
    assert split_sizes(total, parts, (share,) * parts) == split_sizes(total, parts)


@pytest.mark.parametrize("shares", [(1,), (1, 2, 3), (1, 0), (2, -1)])
def test_shares_of_other_ranks_or_of_nothing_are_refused(shares: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="2 ranks can't have the shares"):
        split_sizes(10, 2, shares)


def test_heads_follow_the_tokens_that_a_place_has_in_all_groups() -> None:
    assert head_shares((4, 2, 2, 1), ulysses=2) == (6, 3)
    assert head_shares((3, 1, 2), ulysses=3) == (3, 1, 2)
    assert head_shares((3, 1, 2), ulysses=1) == (6,)
    assert head_shares(None, ulysses=4) is None
