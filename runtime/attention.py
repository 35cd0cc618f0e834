"""Attention on one device, with the log-sum-exp that lets partial results be merged."""

import torch
from torch.nn import functional


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None
) -> torch.Tensor:
    """Plain attention, (B, H, Q, D) x (B, H, K, D) -> (B, H, Q, D)."""
    return functional.scaled_dot_product_attention(query, key, value, scale=scale)


def attend_with_lse(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention and the log of its softmax denominators.

    (B, H, Q, D) x (B, H, K, D) -> (B, H, Q, D), (B, H, Q); the latter in float32. Which kernel
    answers depends on device and dtype: these are the ones of torch that return the log-sum-exp.
    """
    aten = torch.ops.aten
    if query.device.type == "cpu":
        result = aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, scale=scale)
        return result[0], result[1].float()
    if query.dtype in (torch.float16, torch.bfloat16):
        result = aten._scaled_dot_product_flash_attention(query, key, value, scale=scale)
        return result[0], result[1]
    result = aten._scaled_dot_product_efficient_attention(
        query, key, value, None, compute_log_sumexp=True, scale=scale
    )
    # this kernel pads the queries of its second result to a multiple of its block size
    return result[0], result[1][:, :, : query.shape[2]]


class PartialAttention:
    """The merge of attentions of one query over disjoint sets of keys.

    Accumulates in float32; before the first `add` it is the attention over no keys (lse = -inf).
    Source: Liu et al., Ring Attention (arXiv 2310.01889), section 3, in its log-sum-exp form.
    """

    def __init__(self, query: torch.Tensor) -> None:
        self._dtype = query.dtype
        self._out = torch.zeros_like(query, dtype=torch.float32)
        self._lse = torch.full(
            query.shape[:-1], -torch.inf, dtype=torch.float32, device=query.device
        )

    def add(self, out: torch.Tensor, lse: torch.Tensor) -> None:
        """Merges in the attention over further keys: (B, H, Q, D) and (B, H, Q)."""
        merged = torch.logaddexp(self._lse, lse)
        kept = torch.exp(self._lse - merged).unsqueeze(-1)
        self._out = self._out * kept + out * torch.exp(lse - merged).unsqueeze(-1)
        self._lse = merged

    def result(self) -> torch.Tensor:
        """The merged attention, (B, H, Q, D) in the query's dtype."""
        return self._out.to(self._dtype)
