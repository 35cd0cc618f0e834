"""Blocks' graphs as the rewrites leave them, run as they are."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn

from ditplan.runtime.compilation.fusions import rewrite
from ditplan.runtime.compilation.operators import AttentionOperator

CLOSE = 1e-5


class Rewriting:
    """A backend that makes the rewrites and runs the graph as it is; keeps the graph."""

    def __init__(self, attentions: Sequence[AttentionOperator] = ()) -> None:
        self._attentions = attentions
        self.graph = fx.Graph()
        self.packed: list[tuple[str, ...]] = []

    def __call__(self, graph: fx.GraphModule, _inputs: Sequence[Any]) -> Callable[..., Any]:
        """Rewrites all that there is to rewrite."""
        self.packed = rewrite(graph.graph, self._attentions)
        graph.recompile()
        self.graph = graph.graph
        return graph.forward

    def count(self, target: object) -> int:
        """How often the rewritten graph calls something."""
        return sum(node.target is target for node in self.graph.nodes)


def rewritten(
    module: nn.Module, *inputs: torch.Tensor, attentions: Sequence[AttentionOperator] = ()
) -> Rewriting:
    """The rewrites of a module whose results they don't change."""
    torch._dynamo.reset()
    backend = Rewriting(attentions)
    with torch.no_grad():
        expected = module(*inputs)
        found = torch.compile(module, fullgraph=True, dynamic=False, backend=backend)(*inputs)
    for one, other in zip(flat(expected), flat(found), strict=True):
        assert (one - other).abs().max() <= CLOSE
    return backend


def flat(result: Any) -> list[torch.Tensor]:
    """The tensors of a result."""
    return [result] if isinstance(result, torch.Tensor) else list(result)
