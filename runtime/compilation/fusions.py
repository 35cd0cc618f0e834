"""Rewrites of a block's graph that torch.compile doesn't make, for better use of matrix units.

Linear layers with the same input become one product, over weights that lie side by side in memory;
a tanh-GELU after a linear layer happens in the product's own epilogue; what is put together only to
be multiplied is multiplied as it is; joint sequences are put together in the layout that needs no
copies later.
"""

import operator
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import fx
from torch._inductor.compile_fx import compile_fx
from torch.nn import functional

from ditplan.runtime.compilation.built import Built
from ditplan.runtime.compilation.graph_nodes import (
    add_examples,
    argument,
    inputs_of_linear,
    is_own_linear,
    parameter_path,
    shape_of,
)
from ditplan.runtime.compilation.operators import AttentionOperator
from ditplan.runtime.compilation.overlap import attend_beside_products
from ditplan.runtime.compilation.products import PRODUCT_OF_PARTS, PRODUCTS

GELU = torch._C._nn.gelu


class FusingBackend:
    """A backend of torch.compile: rewrites the graph and hands it to inductor.

    `packed` gets the parameters that should lie side by side in memory, as paths below the block.
    """

    def __init__(
        self, attentions: Sequence[AttentionOperator] = (), built: Built | None = None
    ) -> None:
        """`attentions`: those that graphs may call; `built` counts what is compiled."""
        self.packed: list[tuple[str, ...]] = []
        self._attentions = attentions
        self._built = built or Built()

    def __call__(self, graph: fx.GraphModule, inputs: Sequence[torch.Tensor]) -> Callable[..., Any]:
        """Compiles a graph."""
        self._built.compilations += 1
        if changes_in_place(graph.graph):
            # the rewrites move reads, which only a graph of values allows
            return cast(Callable[..., Any], compile_fx(graph, inputs))
        wanted = rewrite(graph.graph, self._attentions)
        self.packed += [paths for paths in wanted if paths not in self.packed]
        add_examples(graph.graph)
        graph.recompile()
        compiled: Any = compile_fx(graph, inputs)
        return cast(Callable[..., Any], compiled)


def rewrite(graph: fx.Graph, attentions: Sequence[AttentionOperator]) -> list[tuple[str, ...]]:
    """All rewrites of a graph of values; returns which parameters should be packed."""
    merge_silus(graph)
    fuse_gelu(graph)
    packed = fuse_linears(graph)
    multiply_parts(graph)
    for attention in attentions:
        attend_beside_products(graph, attention)
    cat_before_transposing(graph)
    return packed


def changes_in_place(graph: fx.Graph) -> bool:
    """Whether anything in a graph writes into a tensor that it read."""
    for node in graph.nodes:
        name = node.target if isinstance(node.target, str) else node.target.__name__
        methods = node.op == "call_method" and name.endswith("_")
        functions = node.op == "call_function" and (
            name == "setitem" or (name.startswith("i") and hasattr(operator, f"__{name}__"))
        )
        if methods or functions or node.kwargs.get("inplace") or "out" in node.kwargs:
            return True
    return False


def merge_silus(graph: fx.Graph) -> None:
    """Computes the SiLU of one tensor once: modulations of image and text then share an input."""
    known: dict[fx.Node, fx.Node] = {}
    for node in list(graph.nodes):
        if node.target is not functional.silu or node.kwargs.get("inplace"):
            continue
        first = known.setdefault(argument(node, 0, "input"), node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)


def fuse_gelu(graph: fx.Graph) -> None:
    """Replaces each tanh-GELU of a linear layer with bias whose result nothing else reads."""
    for node in list(graph.nodes):
        if node.target is not GELU or node.kwargs.get("approximate") != "tanh":
            continue
        linear = argument(node, 0, "input")
        if not is_own_linear(linear) or len(linear.users) > 1 or len(inputs_of_linear(linear)) < 3:
            continue
        value, weight, bias = inputs_of_linear(linear)
        fused = _insert_products(graph, linear, value, [weight], [bias], gelu=True)
        node.replace_all_uses_with(fused)
        graph.erase_node(node)
        graph.erase_node(linear)


def fuse_linears(graph: fx.Graph) -> list[tuple[str, ...]]:
    """Replaces linear layers of the same input by one; returns which parameters should be packed.

    Only those whose weights are the block's own parameters, all with or all without bias. Those of
    LoRA stay alone: they come and go, and what lies side by side should lie so with and without.
    """
    groups: defaultdict[tuple[fx.Node, bool], list[fx.Node]] = defaultdict(list)
    for node in graph.nodes:
        if is_own_linear(node) and ".lora_" not in parameter_path(inputs_of_linear(node)[1]):
            alike = groups[inputs_of_linear(node)[0], len(inputs_of_linear(node)) == 3]
            if all(inputs_of_linear(node)[1] is not inputs_of_linear(other)[1] for other in alike):
                alike.append(node)
    packed = []
    for (value, with_bias), nodes in groups.items():
        if len(nodes) < 2:
            continue
        weights = [inputs_of_linear(node)[1] for node in nodes]
        biases = [inputs_of_linear(node)[2] for node in nodes] if with_bias else []
        fused = _insert_products(graph, nodes[0], value, weights, biases)
        start = 0
        for node, weight in zip(nodes, weights, strict=True):
            size = shape_of(weight)[0]
            with graph.inserting_before(nodes[0]):
                part = graph.call_function(torch.narrow, (fused, -1, start, size))
            node.replace_all_uses_with(part)
            start += size
        for node in nodes:
            graph.erase_node(node)
        packed += [tuple(map(parameter_path, kind)) for kind in (weights, biases) if kind]
    return packed


def multiply_parts(graph: fx.Graph) -> None:
    """Replaces a linear layer of tensors put together in their last dim by one of the parts."""
    for node in list(graph.nodes):
        if not is_own_linear(node) or len(inputs_of_linear(node)) < 3:
            continue
        value, weight, bias = inputs_of_linear(node)
        if value.target is not torch.cat or len(value.users) > 1 or not _cat_pieces(value):
            continue
        if _cat_dim(value) not in (-1, len(shape_of(value)) - 1):
            continue
        with graph.inserting_before(node):
            made = graph.call_function(PRODUCT_OF_PARTS, (_cat_pieces(value), weight, bias))
        node.replace_all_uses_with(made)
        graph.erase_node(node)
        graph.erase_node(value)


def cat_before_transposing(graph: fx.Graph) -> None:
    """Makes cat(a.transpose, b.transpose) the transpose of a cat along the dim that it came from.

    So joint queries, keys and values lie as (B, S, H, D), attention puts out the same, and the
    pieces of image and text are cut from that without copies.
    """
    for node in list(graph.nodes):
        if node.target is not torch.cat:
            continue
        pieces, dim = _cat_pieces(node), _cat_dim(node)
        if not pieces or not all(piece.target == "transpose" for piece in pieces):
            continue
        dims = {piece.args[1:] for piece in pieces}
        swapped = next(iter(dims))
        if len(dims) > 1 or dim not in swapped:
            continue
        other = swapped[1 - swapped.index(dim)]
        with graph.inserting_before(node):
            joined = graph.call_function(torch.cat, ([p.args[0] for p in pieces], other))
            transposed = graph.call_method("transpose", (joined, *swapped))
        node.replace_all_uses_with(transposed)
        graph.erase_node(node)


def _insert_products(
    graph: fx.Graph,
    before: fx.Node,
    value: fx.Node,
    weights: list[fx.Node],
    biases: list[fx.Node],
    gelu: bool = False,
) -> fx.Node:
    with graph.inserting_before(before):
        return graph.call_function(PRODUCTS, (value, weights, biases, gelu))


def _cat_pieces(node: fx.Node) -> list[fx.Node]:
    """The tensors that are put together; none where they can't be told."""
    pieces = argument(node, 0, "tensors")
    return list(pieces) if isinstance(pieces, (list, tuple)) else []


def _cat_dim(node: fx.Node) -> int:
    return int(argument(node, 1, "dim", "axis", default=0))
