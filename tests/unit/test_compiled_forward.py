"""Compiled forwards take any number of shapes and variants, and keep no more than so many."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import fx, nn

from ditplan.runtime.compilation.compiled_forward import MOST_SHAPES, CompiledForward


class Scaled(nn.Module):
    """A module that torch.compile compiles anew for each of its scales."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(4, 4), "1"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, S, 4) -> (B, S, 4)."""
        result: torch.Tensor = self.layer(x) * float(self.scale)
        return result


class Counting:
    """A backend that runs graphs as they are, and counts them; refuses symbols if it is told to."""

    def __init__(self, takes_symbols: bool = True) -> None:
        self.graphs, self._takes_symbols = 0, takes_symbols

    def __call__(self, graph: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        """Counts a graph."""
        if not self._takes_symbols and any(isinstance(one, torch.SymInt) for one in inputs):
            raise NotImplementedError("sizes are symbols")
        self.graphs += 1
        return graph.forward


@pytest.fixture
def module() -> Scaled:
    """A module, and nothing compiled before."""
    torch._dynamo.reset()
    return Scaled()


def call(compiled: CompiledForward, module: Scaled, tokens: int) -> None:
    """Compares a call with the module's own."""
    x = torch.randn(2, tokens, 4)
    with torch.no_grad():
        assert torch.equal(compiled(module, x), module(x))


def test_after_the_first_shapes_a_new_one_compiles_nothing(module: Scaled) -> None:
    backend = Counting()
    compiled = CompiledForward(Scaled.forward, backend)
    for tokens in range(5, 30):
        call(compiled, module, tokens)
    assert backend.graphs == MOST_SHAPES + 1
    for tokens in (29, 5, 30, 6):
        call(compiled, module, tokens)
    assert backend.graphs == MOST_SHAPES + 1


def test_without_shapes_of_their_own_one_code_serves_all(module: Scaled) -> None:
    backend = Counting()
    compiled = CompiledForward(Scaled.forward, backend, most=0)
    for tokens in range(5, 20):
        call(compiled, module, tokens)
    assert backend.graphs == 1


def test_where_sizes_cannot_be_symbols_the_shape_longest_unused_goes(module: Scaled) -> None:
    backend = Counting(takes_symbols=False)
    compiled = CompiledForward(Scaled.forward, backend, most=2)
    for tokens in (5, 6, 5, 7):
        call(compiled, module, tokens)
    assert backend.graphs == 3
    call(compiled, module, 5)
    assert backend.graphs == 3
    call(compiled, module, 6)
    assert backend.graphs == 4


@pytest.mark.parametrize("most", [0, MOST_SHAPES])
def test_no_number_of_variants_of_one_shape_is_too_many(module: Scaled, most: int) -> None:
    backend = Counting()
    compiled = CompiledForward(Scaled.forward, backend, most)
    for scale in range(20):
        module.scale = str(scale)
        call(compiled, module, 5)
        call(compiled, module, 5)
    assert backend.graphs == 20


def test_what_cannot_be_compiled_says_so(module: Scaled) -> None:
    def refuse(_graph: fx.GraphModule, _inputs: Sequence[Any]) -> Callable[..., Any]:
        raise NotImplementedError("nothing can be compiled here")

    for most in (0, 1):
        compiled = CompiledForward(Scaled.forward, refuse, most)
        for tokens in (5, 6):
            with pytest.raises(Exception, match="nothing can be compiled here"):
                compiled(module, torch.randn(2, tokens, 4))
