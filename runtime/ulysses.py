"""Ulysses: trade a share of the tokens with all heads for all tokens with a share of the heads.

Source: Jacobs et al., DeepSpeed-Ulysses (arXiv 2309.14509). Any numbers of tokens and heads: what
doesn't divide becomes split sizes, not padding.
"""

from collections.abc import Callable, Sequence

import torch

from ditplan.runtime.exchange import Exchange

LocalAttention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def ulysses_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    exchange: Exchange,
    token_sizes: Sequence[int],
    attend: LocalAttention,
) -> torch.Tensor:
    """Attention over all tokens of the exchange's group.

    `attend` runs on (B, H of this rank, S of the group, D); the result is this rank's tokens again.
    (B, H, S of this rank, D) -> (B, H, S of this rank, D), with the strides of (B, S, H, D).
    `token_sizes` gives S of each rank of the group. Which rank has which heads, and in what order
    the tokens stand, is the exchange's: attention without a mask minds neither.
    """
    shared = exchange.gather_tokens((query, key, value), token_sizes)
    return exchange.scatter_tokens(attend(*shared), query.shape[1], token_sizes)
