"""Answers to attention as operators of torch, which compiled code calls instead of tracing into."""

import uuid
from collections.abc import Callable

import torch

Answer = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float | None], torch.Tensor]

NAMESPACE = "ditplan"


class AttentionOperator:
    """An answer that runs as it is in eager code, and as one opaque operator in compiled code.

    The operator lives as long as this object. Its result has the strides of (B, S, H, D) with
    `interleaved`, else those of the query, which is what attention kernels give.
    """

    def __init__(self, answer: Answer, interleaved: bool) -> None:
        self._answer = answer
        self._interleaved = interleaved
        name = f"attention_{uuid.uuid4().hex}"
        self._library = torch.library.Library(NAMESPACE, "FRAGMENT")
        self._library.define(
            f"{name}(Tensor query, Tensor key, Tensor value, float? scale) -> Tensor"
        )
        self._library.impl(name, self._run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{NAMESPACE}::{name}", self._shaped, lib=self._library)
        self._operator = getattr(torch.ops.ditplan, name).default

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None
    ) -> torch.Tensor:
        """(B, H, Q, D) and (B, H, K, D) twice -> (B, H, Q, D)."""
        if torch.compiler.is_compiling():
            result: torch.Tensor = self._operator(query, key, value, scale)
            return result
        return self._answer(query, key, value, scale)

    def _run(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None
    ) -> torch.Tensor:
        result = self._answer(query, key, value, scale)
        if self._interleaved:
            return result.transpose(1, 2).contiguous().transpose(1, 2)
        if result.stride() == query.stride():
            return result
        return torch.empty_like(query).copy_(result)

    def _shaped(
        self,
        query: torch.Tensor,
        _key: torch.Tensor,
        _value: torch.Tensor,
        _scale: float | None,
    ) -> torch.Tensor:
        if self._interleaved:
            batch, heads, tokens, width = query.shape
            return query.new_empty(batch, tokens, heads, width).transpose(1, 2)
        return torch.empty_like(query)
