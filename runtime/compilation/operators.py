"""Answers to attention as operators of torch, which compiled code calls instead of tracing into."""

import itertools
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from ditplan.runtime.compilation.products import product_of_parts_beside, products
from ditplan.runtime.groups import Work

AttentionFn = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float | None], torch.Tensor]

NAMESPACE = "ditplan"


class Halves(Protocol):
    """An attention that sends tensors to other ranks before and after: `meanwhile` runs beside.

    `by_tokens` of what `by_heads` gave is the whole attention.
    """

    def by_heads(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float | None,
        meanwhile: Work | None,
    ) -> torch.Tensor:
        """(B, H, Q, D) and (B, H, K, D) twice -> (B, H of this rank, Q of all, D)."""

    def by_tokens(self, attended: torch.Tensor, heads: int, meanwhile: Work | None) -> torch.Tensor:
        """What `by_heads` gave, and H -> (B, H, Q, D), with the strides of (B, Q, H, D)."""


def define_operator(
    library: torch.library.Library,
    kind: str,
    signature: str,
    run: Callable[..., object],
    shaped: Callable[..., object],
) -> torch._ops.OpOverload:
    """An operator of the `NAMESPACE` that lives as long as the library; `shaped` is its fake.

    Its name is its `kind` and the first number that is free: code that is kept from process to
    process is found again by the names in it. Operators of a kind have the same signature and fake.
    """
    names = (f"{kind}_{number}" for number in itertools.count())
    name = next(name for name in names if not hasattr(torch.ops.ditplan, name))
    library.define(f"{name}{signature}")
    library.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", shaped, lib=library)
    operator: torch._ops.OpOverload = getattr(torch.ops.ditplan, name).default
    return operator


class AttentionOperator:
    """An answer that runs as it is in eager code, and as one opaque operator in compiled code.

    The operator lives as long as this object. Its result has the strides of (B, S, H, D) with
    `interleaved`, else those of the query, which is what attention kernels give.

    With `halves` there are two more operators, for blocks whose attention runs beside a matrix
    product (`BesideProducts`).
    """

    def __init__(
        self,
        answer: AttentionFn,
        interleaved: bool,
        halves: Halves | None = None,
        scope: str = "",
    ) -> None:
        """`scope` is of a plan, and part of the operators' names."""
        self._scope = scope
        self._answer = answer
        self._interleaved = interleaved
        self._library = torch.library.Library(NAMESPACE, "FRAGMENT")
        self.target = self._define(
            "attention_interleaved" if interleaved else "attention",
            "(Tensor query, Tensor key, Tensor value, float? scale) -> Tensor",
            self._run,
            self._shaped,
        )
        self.beside = BesideProducts(halves, self._define) if halves else None

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None
    ) -> torch.Tensor:
        """(B, H, Q, D) and (B, H, K, D) twice -> (B, H, Q, D)."""
        if torch.compiler.is_compiling():
            result: torch.Tensor = self.target(query, key, value, scale)
            return result
        return self._answer(query, key, value, scale)

    def _define(
        self, kind: str, signature: str, run: Callable[..., object], shaped: Callable[..., object]
    ) -> torch._ops.OpOverload:
        return define_operator(self._library, f"{kind}_{self._scope}", signature, run, shaped)

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


class BesideProducts:
    """An attention in two operators that multiply matrices while its tensors travel.

    `attend` computes linear layers of another input (see `products`) beside the first exchange,
    `receive` the part of a linear layer that doesn't come from this attention (see
    `product_of_parts`) beside the second. Compiled code calls one after the other: what `attend`
    puts out for `receive` is only a token, the attention itself stays here.
    """

    def __init__(self, halves: Halves, define: Callable[..., torch._ops.OpOverload]) -> None:
        self._halves = halves
        self._attended: torch.Tensor | None = None
        self.attend = define(
            "attention_begun",
            "(Tensor query, Tensor key, Tensor value, float? scale, Tensor rows, "
            "Tensor[] weights, Tensor[] biases, bool gelu) -> (Tensor, Tensor)",
            self._attend,
            self._attend_shaped,
        )
        self.receive = define(
            "attention_received",
            "(Tensor token, int heads, Tensor[] others, int place, Tensor weight, Tensor bias) "
            "-> Tensor",
            self._receive,
            self._receive_shaped,
        )

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float | None,
        rows: torch.Tensor,
        weights: Sequence[torch.Tensor],
        biases: Sequence[torch.Tensor],
        gelu: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        found: list[torch.Tensor] = []
        self._attended = self._halves.by_heads(
            query,
            key,
            value,
            scale,
            lambda: found.append(products(rows, weights, biases, gelu)),
        )
        return query.new_empty(1), found[0]

    def _attend_shaped(
        self,
        query: torch.Tensor,
        _key: torch.Tensor,
        _value: torch.Tensor,
        _scale: float | None,
        rows: torch.Tensor,
        weights: Sequence[torch.Tensor],
        _biases: Sequence[torch.Tensor],
        _gelu: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        width = sum(weight.shape[0] for weight in weights)
        return query.new_empty(1), rows.new_empty(*rows.shape[:-1], width)

    def _receive(
        self,
        _token: torch.Tensor,
        heads: int,
        others: Sequence[torch.Tensor],
        place: int,
        weight: torch.Tensor,
        bias: torch.Tensor,
    ) -> torch.Tensor:
        attended, self._attended = self._attended, None
        if attended is None:
            raise RuntimeError("an attention was received that wasn't begun")

        def arrive(meanwhile: Work) -> torch.Tensor:
            return self._halves.by_tokens(attended, heads, meanwhile).transpose(1, 2).flatten(2)

        return product_of_parts_beside(arrive, others, place, weight, bias)

    def _receive_shaped(
        self,
        _token: torch.Tensor,
        _heads: int,
        others: Sequence[torch.Tensor],
        _place: int,
        weight: torch.Tensor,
        _bias: torch.Tensor,
    ) -> torch.Tensor:
        return others[0].new_empty(*others[0].shape[:-1], weight.shape[0])
