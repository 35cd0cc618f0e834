"""What diffusers' context parallelism can split, by its own rules."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from ditplan.profiles.context_parallel import (
    is_uneven,
    masks_go_wrong,
    tensor_split_sizes,
    why_not_split,
)

SIZES = st.integers(1, 200)
DEGREES = st.integers(1, 8)


@given(SIZES, DEGREES)
def test_shares_are_those_of_tensor_split(length: int, ranks: int) -> None:
    pieces = torch.zeros(length).tensor_split(ranks)
    assert tensor_split_sizes(length, ranks) == [len(piece) for piece in pieces]


@given(SIZES, SIZES, DEGREES, DEGREES)
def test_what_divides_is_always_split(heads: int, length: int, ring: int, ulysses: int) -> None:
    lengths = {"image": length * ring * ulysses}
    assert why_not_split(heads * ulysses, lengths, ring, ulysses) is None
    assert not is_uneven(heads * ulysses, lengths, ring, ulysses)


def test_each_rule_says_what_is_wrong() -> None:
    lengths = {"image": 63, "text": 7}
    found = {
        "7 text tokens can't be shared out to 8 ranks": why_not_split(8, lengths, 1, 8),
        "image tokens by ring x ulysses equally alone, and 63": why_not_split(4, lengths, 2, 2),
        "heads by ulysses equally alone, and 5": why_not_split(5, lengths, 2, 2),
        "pads 5 heads by 3, which must be less than the 2": why_not_split(5, lengths, 1, 4),
    }
    assert all(words in str(why) for words, why in found.items()), found
    for ring, ulysses in ((1, 1), (1, 2), (1, 3), (2, 1), (4, 1)):
        assert why_not_split(5, lengths, ring, ulysses) is None


@given(SIZES, SIZES, st.integers(2, 8))
def test_masks_are_right_where_what_diffusers_joins_is_the_whole(
    image: int, text: int, ranks: int
) -> None:
    shares = zip(tensor_split_sizes(text, ranks), tensor_split_sizes(image, ranks), strict=True)
    masks = [torch.arange(1, a + b + 1) for a, b in shares]
    # as `TemplatedUlyssesAnythingAttention.forward` does it, with 0 for what is padded
    most, total = max(map(len, masks)), sum(map(len, masks))
    padded = [torch.nn.functional.pad(mask, (0, most - len(mask))) for mask in masks]
    is_right = torch.equal(torch.cat(padded)[:total], torch.cat(masks))
    assert masks_go_wrong({"text": text, "image": image}, 1, ranks) != is_right


def test_a_ring_has_one_mask_for_all_blocks_of_keys() -> None:
    assert masks_go_wrong({"image": 64}, 2, 1)
