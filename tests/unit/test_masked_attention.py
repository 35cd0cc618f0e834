"""Attention with keys left out: in parts, merged, it is what the definition says."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ditplan.profiles.model import AttentionKernel
from ditplan.runtime.sequence.layout import Layout, SequenceGroups
from ditplan.runtime.sequence.masked_attention import masked_attention

KERNELS: list[AttentionKernel] = ["auto", "cpu"]


def by_definition(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Softmax over the keys that count, in float64."""
    scores = query.double() @ key.double().mT / query.shape[-1] ** 0.5
    weights: torch.Tensor = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    return weights @ value.double()


@pytest.mark.parametrize("kernel", KERNELS)
@given(
    text=st.integers(1, 9),
    image=st.integers(0, 9),
    kept=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    spread=st.sampled_from([1.0, 30.0]),
    text_first=st.booleans(),
)
def test_keys_that_a_mask_leaves_out_count_for_nothing(
    kernel: AttentionKernel,
    text: int,
    image: int,
    kept: tuple[int, int],
    spread: float,
    text_first: bool,
) -> None:
    drawn = torch.Generator().manual_seed(text * 10 + image)
    query, key, value = (
        torch.randn(2, 3, tokens, 8, generator=drawn) for tokens in (5, text + image, text + image)
    )
    key *= spread
    mask = torch.ones(2, text + image, dtype=torch.bool)
    start = 0 if text_first else image
    for sample, count in enumerate(kept):
        mask[sample, start + min(count, text) : start + text] = False
    ranges = [(start, start + text)]
    found = masked_attention(query, key, value, None, kernel, mask[:, None, None], ranges)
    wanted = by_definition(query, key, value, mask[:, None, None])
    assert float((found - wanted).abs().max()) <= 1e-5


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_sample_without_any_text_has_its_picture_alone(kernel: AttentionKernel) -> None:
    query, key, value = (torch.randn(1, 2, 6, 8) for _ in range(3))
    mask = torch.tensor([[False, False, True, True, True, True]])[:, None, None]
    found = masked_attention(query, key, value, None, kernel, mask, [(0, 2)])
    wanted = by_definition(query, key, value, mask)
    assert float((found - wanted).abs().max()) <= 1e-5


def test_a_layout_says_where_text_may_be_left_out() -> None:
    layout = Layout(SequenceGroups(None, None, None), lengths={"text": 4, "image": 9})
    layout.note_masks({"text": torch.ones(1, 4, dtype=torch.bool)})
    assert layout.masked_ranges(("text", "image"), (0,)) == [(0, 4)]
    assert layout.masked_ranges(("image", "text"), (0,)) == [(9, 13)]
