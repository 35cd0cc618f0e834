"""Rewrites of a block's graph that torch.compile doesn't make, for better use of matrix units.

Linear layers with the same input become one product, over weights that lie side by side in memory;
a tanh-GELU after a linear layer happens in the product's own epilogue; what is put together only to
be multiplied is multiplied as it is; joint sequences are put together in the layout that needs no
copies later.
"""

import operator
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import fx
from torch._inductor.compile_fx import compile_fx
from torch.nn import functional

from ditplan.runtime.products import PRODUCT_OF_PARTS, PRODUCTS

LINEAR = torch._C._nn.linear
GELU = torch._C._nn.gelu


class FusingBackend:
    """A backend of torch.compile: rewrites the graph and hands it to inductor.

    `packed` gets the parameters that should lie side by side in memory, as paths below the block.
    """

    def __init__(self) -> None:
        self.packed: list[tuple[str, ...]] = []

    def __call__(self, graph: fx.GraphModule, inputs: Sequence[torch.Tensor]) -> Callable[..., Any]:
        """Compiles a graph."""
        if changes_in_place(graph.graph):
            # the rewrites move reads, which only a graph of values allows
            return cast(Callable[..., Any], compile_fx(graph, inputs))
        merge_silus(graph.graph)
        fuse_gelu(graph.graph)
        wanted = fuse_linears(graph.graph)
        self.packed += [paths for paths in wanted if paths not in self.packed]
        multiply_parts(graph.graph)
        cat_before_transposing(graph.graph)
        graph.recompile()
        compiled: Any = compile_fx(graph, inputs)
        return cast(Callable[..., Any], compiled)


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
        first = known.setdefault(node.args[0], node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)


def fuse_gelu(graph: fx.Graph) -> None:
    """Replaces each tanh-GELU of a linear layer with bias whose result nothing else reads."""
    for node in list(graph.nodes):
        if node.target is not GELU or node.kwargs.get("approximate") != "tanh":
            continue
        linear = node.args[0]
        if not _is_own_linear(linear) or len(linear.users) > 1 or len(_inputs(linear)) < 3:
            continue
        value, weight, bias = _inputs(linear)
        fused = _insert_products(graph, linear, value, [weight], [bias], gelu=True)
        node.replace_all_uses_with(fused)
        graph.erase_node(node)
        graph.erase_node(linear)


def fuse_linears(graph: fx.Graph) -> list[tuple[str, ...]]:
    """Replaces linear layers of the same input by one; returns which parameters should be packed.

    Only those whose weights are the block's own parameters, all with or all without bias.
    """
    groups: defaultdict[tuple[fx.Node, bool], list[fx.Node]] = defaultdict(list)
    for node in graph.nodes:
        if _is_own_linear(node):
            groups[_inputs(node)[0], len(_inputs(node)) == 3].append(node)
    packed = []
    for (value, with_bias), nodes in groups.items():
        if len(nodes) < 2:
            continue
        weights = [_inputs(node)[1] for node in nodes]
        biases = [_inputs(node)[2] for node in nodes] if with_bias else []
        fused = _insert_products(graph, nodes[0], value, weights, biases)
        start = 0
        for node, weight in zip(nodes, weights, strict=True):
            size = _shape(weight)[0]
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
        if not _is_own_linear(node) or len(_inputs(node)) < 3:
            continue
        value, weight, bias = _inputs(node)
        if value.target is not torch.cat or len(value.users) > 1:
            continue
        if _cat_dim(value) not in (-1, len(_shape(value)) - 1):
            continue
        with graph.inserting_before(node):
            made = graph.call_function(PRODUCT_OF_PARTS, (value.args[0], weight, bias))
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
        pieces, dim = node.args[0], _cat_dim(node)
        if not all(piece.target == "transpose" for piece in pieces):
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


def parameter_path(placeholder: fx.Node) -> str:
    """The dotted path below the block of the parameter that a graph's input stands for."""
    name = placeholder.meta["grapharg"].source.name
    # such as L['self']._modules['attn']._modules['to_q']._parameters['weight']
    return ".".join(re.findall(r"\['([^']+)'\]", name() if callable(name) else name)[1:])


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


def _cat_dim(node: fx.Node) -> int:
    named = node.kwargs.get("dim", node.kwargs.get("axis", 0))
    return int(cast(int, node.args[1] if len(node.args) > 1 else named))


def _is_own_linear(node: fx.Node) -> bool:
    return node.target is LINEAR and all(map(_is_plain_parameter, _inputs(node)[1:]))


def _is_plain_parameter(node: fx.Node) -> bool:
    """Whether a node is a parameter of the block, without a class (quantization) of its own."""
    if node.op != "placeholder" or "grapharg" not in node.meta:
        return False
    return type(node.meta["grapharg"].example) is torch.nn.Parameter


def _inputs(linear: fx.Node) -> tuple[fx.Node, ...]:
    names = ("input", "weight", "bias")
    given = [*linear.args, *(linear.kwargs.get(name) for name in names[len(linear.args) :])]
    return tuple(node for node in given if isinstance(node, fx.Node))


def _shape(node: fx.Node) -> torch.Size:
    example: torch.Tensor = node.meta["example_value"]
    return example.shape
