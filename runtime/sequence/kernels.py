"""Attention on one device: the kernels there are, each with the log-sum-exp that merges parts.

The only file that knows flash-attn, which is used where it is installed and never needed.
"""

import importlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import torch
from torch.nn import functional

from ditplan.profiles.errors import InputError
from ditplan.profiles.model import AttentionKernel

HALF = (torch.float16, torch.bfloat16)
FLASH_ATTN_PACKAGES: dict[AttentionKernel, tuple[str, str]] = {
    "flash-attn-2": ("flash_attn", "return_attn_probs"),
    "flash-attn-3": ("flash_attn_interface", "return_attn_probs"),
    "flash-attn-4": ("flash_attn.cute", "return_lse"),
}
"""Module of each version, and the argument with which its function also returns the log-sum-exp."""

AttendWithLse = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, float | None], tuple[torch.Tensor, torch.Tensor]
]


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float | None,
    kernel: AttentionKernel = "auto",
) -> torch.Tensor:
    """Plain attention, (B, H, Q, D) x (B, H, K, D) -> (B, H, Q, D).

    Raises:
        InputError: the kernel can't be used here.
    """
    if kernel == "auto":
        return functional.scaled_dot_product_attention(query, key, value, scale=scale)
    return attend_with_lse(query, key, value, scale, kernel)[0]


def attend_with_lse(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float | None,
    kernel: AttentionKernel = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention and the log of its softmax denominators.

    (B, H, Q, D) x (B, H, K, D) -> (B, H, Q, D), (B, H, Q); the latter in float32. `auto` takes the
    kernel of torch's default that returns it for this device and dtype.

    Raises:
        InputError: the kernel can't be used here.
    """
    if kernel == "auto":
        half = query.dtype in HALF
        kernel = "cpu" if query.device.type == "cpu" else "flash" if half else "efficient"
    if wrong := why_unusable(kernel, query.device, query.dtype, query.shape[-1]):
        raise InputError(wrong)
    return _implementation(kernel)(query, key, value, scale)


def why_unusable(
    kernel: AttentionKernel, device: torch.device, dtype: torch.dtype, head_dim: int
) -> str | None:
    """One sentence that says why a kernel can't compute this; None where it can."""
    if kernel == "auto":
        return None
    if (kernel == "cpu") != (device.type == "cpu"):
        kind = "CPUs" if device.type == "cpu" else "GPUs"
        return f"attention kernel {kernel} doesn't run on {kind}; use auto"
    if kernel in ("cpu", "efficient"):
        return None
    if dtype not in HALF:
        return f"attention kernel {kernel} computes in bfloat16 and float16, not {dtype}; use auto"
    if head_dim % 8 or head_dim > 256 or (kernel == "cudnn" and head_dim > 128):
        return f"attention kernel {kernel} has no heads of {head_dim}; use auto"
    if kernel in FLASH_ATTN_PACKAGES and _flash_attn(kernel) is None:
        module = FLASH_ATTN_PACKAGES[kernel][0]
        return f"attention kernel {kernel} needs module {module}, which isn't installed; use auto"
    return None


def usable_kernels(
    device: torch.device, dtype: torch.dtype, head_dim: int
) -> tuple[AttentionKernel, ...]:
    """The kernels that can compute this, for a measurement to choose from; without `auto`."""
    kernels: tuple[AttentionKernel, ...] = get_args(AttentionKernel)
    return tuple(
        kernel
        for kernel in kernels
        if kernel != "auto" and not why_unusable(kernel, device, dtype, head_dim)
    )


def _implementation(kernel: AttentionKernel) -> AttendWithLse:
    if installed := _flash_attn(kernel):
        return partial(_by_flash_attn, installed, FLASH_ATTN_PACKAGES[kernel][1])
    implementations: dict[str, AttendWithLse] = {
        "cpu": _by_cpu,
        "flash": _by_flash,
        "cudnn": _by_cudnn,
        "efficient": _by_efficient,
    }
    return implementations[kernel]


def _by_cpu(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    result = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, scale=scale
    )
    return result[0], result[1].float()


def _by_flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    result = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, scale=scale)
    return result[0], result[1]


def _by_cudnn(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    result = torch.ops.aten._scaled_dot_product_cudnn_attention(
        query, key, value, None, compute_log_sumexp=True, scale=scale
    )
    return result[0], result[1].squeeze(-1)


def _by_efficient(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    result = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, None, compute_log_sumexp=True, scale=scale
    )
    # this kernel pads the queries of its second result to a multiple of its block size
    return result[0], result[1][:, :, : query.shape[2]]


def _by_flash_attn(
    function: Callable[..., Any],
    lse_argument: str,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """flash-attn's own layout is (B, S, H, D)."""
    result = function(
        *(tensor.transpose(1, 2) for tensor in (query, key, value)),
        softmax_scale=scale,
        **{lse_argument: True},
    )
    return result[0].transpose(1, 2), result[1]


def _flash_attn(kernel: AttentionKernel) -> Callable[..., Any] | None:
    """The function of an installed flash-attn that can return the log-sum-exp; else None."""
    if kernel not in FLASH_ATTN_PACKAGES:
        return None
    module, lse_argument = FLASH_ATTN_PACKAGES[kernel]
    try:
        function: Callable[..., Any] = importlib.import_module(module).flash_attn_func
    except (ImportError, OSError, AttributeError):
        return None
    return function if lse_argument in inspect.signature(function).parameters else None


class PartialAttention:
    """The merge of attentions of one query over disjoint sets of keys.

    Accumulates in float32. Source: Liu et al., Ring Attention (arXiv 2310.01889), section 3, in its
    log-sum-exp form: with w = sigmoid(lse' - lse), out <- out + w (out' - out) and
    lse <- logaddexp(lse, lse').
    """

    def __init__(self) -> None:
        self._out: torch.Tensor | None = None
        self._lse: torch.Tensor | None = None

    def add(self, out: torch.Tensor, lse: torch.Tensor) -> None:
        """Merges in the attention over further keys: (B, H, Q, D) and (B, H, Q)."""
        if self._out is None or self._lse is None:
            self._out, self._lse = out, lse
            return
        weight = torch.sigmoid(lse - self._lse).unsqueeze(-1)
        self._out = torch.lerp(self._out.float(), out.float(), weight)
        self._lse = torch.logaddexp(self._lse, lse)

    def result(self, dtype: torch.dtype) -> torch.Tensor:
        """The merged attention, (B, H, Q, D).

        Raises:
            ValueError: nothing was added.
        """
        if self._out is None:
            raise ValueError("attention over no keys has no result")
        return self._out.to(dtype)
