"""Attention kernels of one device: which can be used, what they compute, how parts are merged."""

import math
import sys

import pytest
import torch

from ditplan.profiles.errors import InputError
from ditplan.profiles.model import AttentionKernel
from ditplan.runtime.sequence.kernels import (
    FLASH_ATTN_PACKAGES,
    PartialAttention,
    attend,
    attend_with_lse,
    usable_kernels,
    why_unusable,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda")
ON_GPUS: list[AttentionKernel] = ["flash", "cudnn", "efficient", *FLASH_ATTN_PACKAGES]


@pytest.fixture
def no_flash_attn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without flash-attn, whatever this one has."""
    for module, _ in FLASH_ATTN_PACKAGES.values():
        monkeypatch.setitem(sys.modules, module, None)


def random_qkv(
    queries: int, keys: int, dtype: torch.dtype, spread: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two samples of three heads, 24 wide; a larger spread makes sharper attention."""
    generator = torch.Generator().manual_seed(queries * keys)
    query, key, value = (
        torch.randn(2, 3, tokens, 24, generator=generator, dtype=torch.float64)
        for tokens in (queries, keys, keys)
    )
    return (spread * query).to(dtype), key.to(dtype), value.to(dtype)


def by_softmax(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention and log-sum-exp by their definitions, in float64."""
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = scale * query.double() @ key.double().transpose(2, 3)
    return scores.softmax(dim=-1) @ value.double(), scores.logsumexp(dim=-1)


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest absolute difference of two tensors that must have the same shape."""
    assert found.shape == expected.shape
    return float((found.double() - expected.double()).abs().max())


@pytest.mark.parametrize("head_dim", [16, 64, 129, 512])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cpus_have_one_kernel_for_every_dtype_and_head(dtype: torch.dtype, head_dim: int) -> None:
    assert usable_kernels(CPU, dtype, head_dim) == ("cpu",)


@pytest.mark.usefixtures("no_flash_attn")
@pytest.mark.parametrize(
    ("dtype", "head_dim", "expected"),
    [
        (torch.bfloat16, 64, ("flash", "cudnn", "efficient")),
        (torch.float16, 128, ("flash", "cudnn", "efficient")),
        (torch.bfloat16, 136, ("flash", "efficient")),
        (torch.bfloat16, 256, ("flash", "efficient")),
        (torch.bfloat16, 264, ("efficient",)),
        (torch.bfloat16, 129, ("efficient",)),
        (torch.float32, 64, ("efficient",)),
    ],
)
def test_gpus_without_flash_attn_have_those_kernels_of_torch_that_fit(
    dtype: torch.dtype, head_dim: int, expected: tuple[str, ...]
) -> None:
    assert usable_kernels(GPU, dtype, head_dim) == expected


@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
def test_auto_is_always_usable_and_never_a_choice(device: torch.device) -> None:
    assert why_unusable("auto", device, torch.float32, 129) is None
    assert "auto" not in usable_kernels(device, torch.bfloat16, 64)


@pytest.mark.parametrize("kernel", ON_GPUS)
def test_a_kernel_of_gpus_is_refused_on_a_cpu(kernel: AttentionKernel) -> None:
    said = f"attention kernel {kernel} doesn't run on CPUs; use auto"
    assert why_unusable(kernel, CPU, torch.bfloat16, 64) == said
    half = [tensor.bfloat16() for tensor in random_qkv(4, 4, torch.float32)]
    for function in (attend, attend_with_lse):
        with pytest.raises(InputError) as refusal:
            function(half[0], half[1], half[2], None, kernel)
        assert str(refusal.value) == said


def test_the_kernel_of_cpus_is_refused_on_a_gpu() -> None:
    said = "attention kernel cpu doesn't run on GPUs; use auto"
    assert why_unusable("cpu", GPU, torch.bfloat16, 64) == said


@pytest.mark.parametrize("kernel", [kernel for kernel in ON_GPUS if kernel != "efficient"])
def test_a_kernel_for_half_precision_is_refused_for_float32(kernel: AttentionKernel) -> None:
    said = (
        f"attention kernel {kernel} computes in bfloat16 and float16, not torch.float32; use auto"
    )
    assert why_unusable(kernel, GPU, torch.float32, 64) == said


@pytest.mark.parametrize(
    ("kernel", "head_dim"),
    [("flash", 129), ("flash", 264), ("cudnn", 129), ("cudnn", 136), ("flash-attn-2", 129)],
)
def test_a_kernel_is_refused_for_heads_that_it_does_not_have(
    kernel: AttentionKernel, head_dim: int
) -> None:
    said = f"attention kernel {kernel} has no heads of {head_dim}; use auto"
    assert why_unusable(kernel, GPU, torch.bfloat16, head_dim) == said


@pytest.mark.usefixtures("no_flash_attn")
@pytest.mark.parametrize("kernel", FLASH_ATTN_PACKAGES)
def test_a_flash_attn_that_is_not_installed_is_refused_with_its_module(
    kernel: AttentionKernel,
) -> None:
    module = FLASH_ATTN_PACKAGES[kernel][0]
    said = f"attention kernel {kernel} needs module {module}, which isn't installed; use auto"
    assert why_unusable(kernel, GPU, torch.bfloat16, 64) == said


@pytest.mark.parametrize("scale", [None, 0.5])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (5, 12), (37, 3), (130, 259)])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_attention_and_its_log_sum_exp_are_those_of_their_definitions(
    queries: int, keys: int, scale: float | None, dtype: torch.dtype, close: float
) -> None:
    qkv = random_qkv(queries, keys, dtype)
    expected, expected_lse = by_softmax(*qkv, scale)
    for kernel in ("auto", *usable_kernels(CPU, dtype, 24)):
        out, lse = attend_with_lse(*qkv, scale, kernel)
        assert out.dtype == dtype
        assert difference(out, expected) <= close
        assert lse.dtype == torch.float32
        assert difference(lse, expected_lse) <= 1e-5
        assert difference(attend(*qkv, scale, kernel), expected) <= close


@pytest.mark.parametrize("spread", [1.0, 100.0])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)], ids=str)
def test_attentions_over_uneven_pieces_merge_to_the_attention_over_all_keys(
    order: tuple[int, ...], spread: float
) -> None:
    query, key, value = random_qkv(9, 20, torch.float32, spread)
    pieces = list(zip(key.split((3, 1, 16), 2), value.split((3, 1, 16), 2), strict=True))
    merged = PartialAttention()
    for place in order:
        merged.add(*attend_with_lse(query, *pieces[place], None))
    expected, _ = by_softmax(query, key, value, None)
    assert difference(merged.result(torch.float32), expected) <= 2e-5
    assert merged.result(torch.bfloat16).dtype == torch.bfloat16


def test_bfloat16_pieces_are_merged_without_rounding_in_between() -> None:
    query, key, value = random_qkv(9, 64, torch.bfloat16)
    merged = PartialAttention()
    outs, lses = [], []
    for keys, values in zip(key.split(1, 2), value.split(1, 2), strict=True):
        out, lse = attend_with_lse(query, keys, values, None)
        merged.add(out, lse)
        outs.append(out.double())
        lses.append(lse.double())
    weights = torch.stack(lses).softmax(dim=0).unsqueeze(-1)
    expected = (weights * torch.stack(outs)).sum(dim=0)
    assert difference(merged.result(torch.float32), expected) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_piece_is_returned_as_it_is(dtype: torch.dtype) -> None:
    out, lse = attend_with_lse(*random_qkv(5, 12, dtype), None)
    merged = PartialAttention()
    merged.add(out, lse)
    assert merged.result(dtype) is out


def test_a_merge_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="attention over no keys has no result"):
        PartialAttention().result(torch.float32)
