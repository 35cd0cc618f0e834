"""Attention beside matrix products: same results, in the right order, only where it can be."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from ditplan.runtime.compilation.operators import AttentionOperator
from ditplan.runtime.compilation.products import PRODUCT_OF_PARTS, PRODUCTS
from ditplan.runtime.groups import Work
from tests.unit.rewriting import Rewriting, rewritten

HEADS, WIDTH = 3, 4


class Halves:
    """Attention on one device that pretends to send tensors; notes what happens in which order."""

    def __init__(self) -> None:
        self.happened: list[str] = []
        self.heads = 0

    def by_heads(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float | None,
        meanwhile: Work | None = None,
    ) -> torch.Tensor:
        """Plain attention."""
        self._send("sent", meanwhile)
        return functional.scaled_dot_product_attention(query, key, value, scale=scale)

    def by_tokens(
        self, attended: torch.Tensor, heads: int, meanwhile: Work | None = None
    ) -> torch.Tensor:
        """What is given."""
        self.heads = heads
        self._send("returned", meanwhile)
        return attended

    def _send(self, what: str, meanwhile: Work | None) -> None:
        self.happened.append(what)
        if meanwhile is not None:
            meanwhile()
            self.happened.append("multiplied")

    def operator(self) -> AttentionOperator:
        """As compiled code calls it."""

        def answer(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, s: Any) -> torch.Tensor:
            return self.by_tokens(self.by_heads(q, k, v, s), q.shape[1])

        return AttentionOperator(answer, interleaved=True, halves=self)


class Parallel(nn.Module):
    """A block whose attention and MLP run side by side, put together as a function says."""

    def __init__(self, attention: AttentionOperator, join: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        size = HEADS * WIDTH
        self.attention, self.join = attention, join
        self.q, self.k, self.v = (nn.Linear(size, size) for _ in range(3))
        self.up, self.out = nn.Linear(size, 2 * size), nn.Linear(3 * size, size)

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        """(B, S, H x D) -> (B, H, S, D)."""
        split = (layer(x).unflatten(-1, (HEADS, WIDTH)) for layer in (self.q, self.k, self.v))
        query, key, value = (part.transpose(1, 2) for part in split)
        return self.attention(query, key, value, None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, S, H x D) -> the same."""
        return self.join(self, x)


def joined(attended: torch.Tensor) -> torch.Tensor:
    """(B, H, S, D) -> (B, S, H x D)."""
    return attended.permute(0, 2, 1, 3).flatten(2, 3)


def mlp_first(block: Any, x: torch.Tensor) -> Any:
    """As FLUX's single blocks."""
    active = functional.gelu(block.up(x), approximate="tanh")
    return block.out(torch.cat([joined(block.attend(x)), active], dim=2))


def attention_first(block: Any, x: torch.Tensor) -> Any:
    """The MLP has an input and an activation that follow the attention."""
    attended = block.attend(x).transpose(1, 2).reshape(*x.shape).to(x.dtype)
    return block.out(torch.cat([functional.gelu(block.up(x * 2)), attended], dim=-1))


def read_twice(block: Any, x: torch.Tensor) -> Any:
    """The attention's output is read elsewhere, too."""
    attended = joined(block.attend(x))
    return block.out(torch.cat([attended, block.up(x)], dim=2)) + attended


def one_after_the_other(block: Any, x: torch.Tensor) -> Any:
    """The MLP needs the attention's output."""
    attended = joined(block.attend(x))
    return block.out(torch.cat([attended, block.up(attended)], dim=2))


def changed_on_the_way(block: Any, x: torch.Tensor) -> Any:
    """Heads and tokens aren't swapped back."""
    attended = block.attend(x).reshape(x.shape)
    return block.out(torch.cat([attended, block.up(x)], dim=2))


def rewritten_block(join: Callable[..., torch.Tensor]) -> tuple[Rewriting, Halves]:
    """The rewritten graph, and what happened in its last run."""
    torch.manual_seed(0)
    halves = Halves()
    block = Parallel(halves.operator(), join).eval()
    halves.happened.clear()
    found = rewritten(block, torch.randn(2, 5, HEADS * WIDTH), attentions=[block.attention])
    return found, halves


@pytest.mark.parametrize("join", [mlp_first, attention_first])
def test_the_mlp_is_multiplied_while_tensors_travel(join: Callable[..., torch.Tensor]) -> None:
    found, halves = rewritten_block(join)
    assert halves.happened[-4:] == ["sent", "multiplied", "returned", "multiplied"]
    assert halves.heads == HEADS
    assert found.count(PRODUCTS) == 1
    assert found.count(PRODUCT_OF_PARTS) == 0


@pytest.mark.parametrize("join", [read_twice, one_after_the_other, changed_on_the_way])
def test_an_attention_without_independent_products_stays_one(
    join: Callable[..., torch.Tensor],
) -> None:
    _, halves = rewritten_block(join)
    assert halves.happened[-2:] == ["sent", "returned"]


def test_operators_beside_products_promise_the_shapes_that_they_give() -> None:
    halves = Halves()
    beside = halves.operator().beside
    assert beside is not None
    query, rows = torch.randn(2, HEADS, 5, WIDTH), torch.randn(2, 5, 12)
    weights, biases = [torch.randn(7, 12), torch.randn(3, 12)], [torch.randn(7), torch.randn(3)]
    checked = ("test_schema", "test_faketensor")
    arguments = (query, query, query, None, rows, weights, biases, False)
    torch.library.opcheck(beside.attend, arguments, test_utils=checked)
    token, product = beside.attend(*arguments)
    expected = torch.cat([rows @ w.T + b for w, b in zip(weights, biases, strict=True)], dim=-1)
    torch.testing.assert_close(product, expected)
    found = beside.receive(token, HEADS, [product], 1, torch.randn(6, 22), torch.randn(6))
    assert found.shape == (2, 5, 6)


def test_what_was_not_begun_can_not_be_received() -> None:
    beside = Halves().operator().beside
    assert beside is not None
    with pytest.raises(RuntimeError, match="wasn't begun"):
        beside.receive(torch.empty(1), 3, [torch.randn(2, 5, 4)], 0, torch.randn(6, 16), None)
