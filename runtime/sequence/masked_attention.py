"""Attention over keys of which a mask leaves some out.

A kernel that takes a mask is half as slow again as one that doesn't. But only texts have padding,
and most keys are a picture's. So attention over the picture's keys is computed without a mask, that
over the text's with one, and both are merged by their log-sum-exp.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional

from ditplan.profiles.model import AttentionKernel
from ditplan.runtime.sequence.kernels import HALF, attend_with_lse, why_unusable

Range = tuple[int, int]


def masked_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float | None,
    kernel: AttentionKernel,
    mask: torch.Tensor,
    ranges: Sequence[Range],
) -> torch.Tensor:
    """(B, H, Q, D) x (B, H, K, D), mask (B, 1, 1, K), false for keys to leave out -> (B, H, Q, D).

    The mask leaves none out beyond `ranges` of the keys. Where no kernel for parts can be used, or
    the mask may leave out any key, torch chooses one that takes the whole mask.

    Raises:
        InputError: the kernel can't be used here.
    """
    by_mask = _kernel_with_mask(query)
    others = _beyond(ranges, key.shape[2])
    if by_mask is None or not others or (kernel == "auto" and by_mask == "cpu"):
        return functional.scaled_dot_product_attention(query, key, value, mask, scale=scale)
    kernel = by_mask if kernel == "auto" else kernel
    result, lse = attend_with_lse(query, _at(others, key, 2), _at(others, value, 2), scale, kernel)
    beside, its_lse = _attend_by_mask(
        query, _at(ranges, key, 2), _at(ranges, value, 2), scale, _at(ranges, mask, 3)
    )
    # lerp computes in float32 and rounds once
    weight = torch.sigmoid(its_lse - lse).unsqueeze(-1).to(result.dtype)
    return torch.lerp(result, beside, weight)


def _kernel_with_mask(query: torch.Tensor) -> AttentionKernel | None:
    """The kernel that takes a mask and returns the log-sum-exp on this device; None for none."""
    if query.device.type == "cpu":
        return "cpu"
    usable = not why_unusable("cudnn", query.device, query.dtype, query.shape[-1])
    fast = query.dtype in HALF and torch.cuda.get_device_capability(query.device)[0] >= 9
    return "cudnn" if usable and fast else None


def _attend_by_mask(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float | None,
    mask: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `attend_with_lse`; a sample without any key counts for nothing in a merge."""
    # a finite number: over infinities alone there would be no result to weigh by nothing
    least = torch.finfo(query.dtype).min / 2
    bias = torch.zeros(mask.shape, dtype=query.dtype, device=mask.device).masked_fill(~mask, least)
    if query.device.type == "cpu":
        result = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, attn_mask=bias, scale=scale
        )
        return result[0], result[1]
    whole = bias.expand(*query.shape[:3], key.shape[2])
    result = torch.ops.aten._scaled_dot_product_cudnn_attention(
        query, key, value, whole, compute_log_sumexp=True, scale=scale
    )
    return result[0], result[1].squeeze(-1)


def _beyond(ranges: Sequence[Range], length: int) -> list[Range]:
    """What of 0 to `length` is in none of the ranges, which ascend."""
    starts = [0, *(end for _, end in ranges)]
    ends = [*(start for start, _ in ranges), length]
    return [(start, end) for start, end in zip(starts, ends, strict=True) if start < end]


def _at(ranges: Sequence[Range], tensor: torch.Tensor, dim: int) -> torch.Tensor:
    """These ranges of a tensor's dim, one after the other."""
    parts = [tensor.narrow(dim, start, end - start) for start, end in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
