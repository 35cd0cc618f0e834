"""Attention kernels: which can be used where, and that output and log-sum-exp are right."""

import pytest
import torch

from ditplan.profiles.errors import InputError
from ditplan.profiles.model import AttentionKernel
from ditplan.runtime.attention import (
    PartialAttention,
    attend,
    attend_with_lse,
    usable_kernels,
    why_unusable,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda")
CLOSE = 1e-5


def tensors(keys: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, key and value (2, 3, 5 or `keys`, 16)."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, n, 16, generator=generator) for n in (5, keys, keys))
    return query, key, value


def test_cpus_have_one_kernel() -> None:
    assert usable_kernels(CPU, torch.float32, 64) == ("cpu",)


@pytest.mark.parametrize(
    ("kernel", "device", "dtype", "head_dim", "why"),
    [
        ("flash", CPU, torch.bfloat16, 64, "doesn't run on CPUs"),
        ("cpu", GPU, torch.bfloat16, 64, "doesn't run on GPUs"),
        ("cudnn", GPU, torch.float32, 64, "computes in bfloat16 and float16"),
        ("cudnn", GPU, torch.bfloat16, 136, "has no heads of 136"),
        ("flash", GPU, torch.bfloat16, 129, "has no heads of 129"),
        ("flash-attn-3", GPU, torch.bfloat16, 64, "needs module flash_attn_interface"),
    ],
)
def test_what_a_kernel_cannot_do_is_said_with_what_to_do(
    kernel: AttentionKernel, device: torch.device, dtype: torch.dtype, head_dim: int, why: str
) -> None:
    sentence = why_unusable(kernel, device, dtype, head_dim)
    assert sentence is not None
    assert why in sentence
    assert sentence.endswith("use auto")


@pytest.mark.parametrize(
    ("kernel", "device", "dtype"),
    [
        ("auto", CPU, torch.float32),
        ("auto", GPU, torch.float32),
        ("efficient", GPU, torch.float32),
        ("flash", GPU, torch.float16),
        ("cudnn", GPU, torch.bfloat16),
    ],
)
def test_kernels_are_usable_where_they_compute(
    kernel: AttentionKernel, device: torch.device, dtype: torch.dtype
) -> None:
    assert why_unusable(kernel, device, dtype, 64) is None


def test_a_kernel_that_cannot_be_used_is_refused() -> None:
    with pytest.raises(InputError, match="attention kernel cudnn doesn't run on CPUs; use auto"):
        attend(*tensors(7), None, "cudnn")


@pytest.mark.parametrize("keys", [1, 7, 130])
@pytest.mark.parametrize("scale", [None, 0.1])
def test_output_and_log_sum_exp_are_those_of_the_definition(keys: int, scale: float | None) -> None:
    query, key, value = tensors(keys)
    out, lse = attend_with_lse(query, key, value, scale)
    factor = 16**-0.5 if scale is None else scale
    scores = query.double() @ key.double().mT * factor
    assert (out - scores.softmax(-1) @ value.double()).abs().max() <= CLOSE
    assert (lse - scores.logsumexp(-1)).abs().max() <= CLOSE
    assert lse.dtype == torch.float32


@pytest.mark.parametrize("sizes", [(12,), (5, 7), (1, 10, 1)])
def test_pieces_merge_to_the_attention_over_all_keys(sizes: tuple[int, ...]) -> None:
    query, key, value = tensors(12)
    merged = PartialAttention()
    for keys, values in zip(key.split(sizes, 2), value.split(sizes, 2), strict=True):
        merged.add(*attend_with_lse(query, keys, values, None))
    whole = attend(query, key, value, None)
    assert (merged.result(torch.float32) - whole).abs().max() <= CLOSE


def test_attention_over_no_keys_has_no_result() -> None:
    with pytest.raises(ValueError, match="no keys"):
        PartialAttention().result(torch.float32)
