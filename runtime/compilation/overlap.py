"""A rewrite of a block's graph that hides the exchanges of its attention behind matrix products.

For blocks whose attention and MLP run side by side and are put together by one linear layer (the
single blocks of FLUX and HunyuanVideo): the MLP's first product is multiplied while queries, keys
and values travel, its part of the last one while the attention's output does.
"""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass

from torch import fx
from torch._inductor.pattern_matcher import stable_topological_sort

from ditplan.runtime.compilation.graph_nodes import (
    argument,
    inputs_of_linear,
    is_own_linear,
    shape_of,
)
from ditplan.runtime.compilation.operators import AttentionOperator
from ditplan.runtime.compilation.products import PRODUCT_OF_PARTS, PRODUCTS


def attend_beside_products(graph: fx.Graph, attention: AttentionOperator) -> None:
    """Splits calls of an attention in two where there are products to multiply meanwhile."""
    beside = attention.beside
    if beside is None:
        return
    for node in list(graph.nodes):
        if node.target is not attention.target:
            continue
        received = _received(node)
        product = _independent_product(graph, node)
        if received is None or product is None:
            continue
        with graph.inserting_before(node):
            both = graph.call_function(beside.attend, (*node.args, *_products_of(product)))
            token = graph.call_function(operator.getitem, (both, 0))
            made = graph.call_function(operator.getitem, (both, 1))
        product.replace_all_uses_with(made)
        graph.erase_node(product)
        others, weight, bias = (argument(received.by, i) for i in range(3))
        others = list(others)
        place = others.index(received.nodes[-1])
        others.pop(place)
        heads = shape_of(argument(node, 0))[1]
        with graph.inserting_before(received.by):
            whole = graph.call_function(beside.receive, (token, heads, others, place, weight, bias))
        received.by.replace_all_uses_with(whole)
        for unused in (received.by, *reversed(received.nodes), node):
            graph.erase_node(unused)
        stable_topological_sort(graph)


@dataclass(frozen=True)
class Received:
    """The product that reads an attention's output, and the nodes that bring it there."""

    by: fx.Node
    nodes: list[fx.Node]


def _received(attention: fx.Node) -> Received | None:
    """(B, H, S, D) brought as (B, S, H x D) into a product of parts, and nowhere else."""
    found: list[fx.Node] = []
    node = attention
    while len(node.users) == 1:
        user = next(iter(node.users))
        if user.target is PRODUCT_OF_PARTS:
            parts = list(argument(user, 0))
            return Received(user, found) if parts.count(node) == 1 and len(parts) > 1 else None
        expected = _swaps(user) if not found else _keeps_order(user, attention)
        if not expected:
            return None
        found.append(user)
        node = user
    return None


def _swaps(node: fx.Node) -> bool:
    if node.target == "permute":
        return node.args[1:] == (0, 2, 1, 3)
    return node.target == "transpose" and node.args[1:] in ((1, 2), (2, 1))


def _keeps_order(node: fx.Node, attention: fx.Node) -> bool:
    """Whether a node only joins heads, or is a cast to the dtype that there is."""
    if node.target not in ("flatten", "reshape", "view", "to"):
        return False
    before, after = (each.meta["example_value"] for each in (argument(attention, 0), node))
    batch, heads, tokens, width = before.shape
    shapes = ((batch, tokens, heads * width), (batch, tokens, heads, width))
    return after.dtype == before.dtype and after.shape in shapes


def _independent_product(graph: fx.Graph, attention: fx.Node) -> fx.Node | None:
    """The largest product that neither the attention needs nor needs the attention."""
    related = _reached(attention, lambda node: node.all_input_nodes)
    related |= _reached(attention, lambda node: list(node.users))
    products = [
        node
        for node in graph.nodes
        if (node.target is PRODUCTS or is_own_linear(node)) and node not in related
    ]

    def size(product: fx.Node) -> int:
        return sum(math.prod(shape_of(weight)) for weight in _products_of(product)[1])

    return max(products, key=size, default=None)


def _products_of(node: fx.Node) -> tuple[fx.Node, list[fx.Node], list[fx.Node], bool]:
    """The arguments of `products` that compute what a node does."""
    if node.target is PRODUCTS:
        value, weights, biases, gelu = (argument(node, i) for i in range(4))
        return value, list(weights), list(biases), gelu
    value, weight, *bias = inputs_of_linear(node)
    return value, [weight], bias, False


def _reached(start: fx.Node, following: Callable[[fx.Node], list[fx.Node]]) -> set[fx.Node]:
    seen, left = {start}, [start]
    while left:
        new = [node for node in following(left.pop()) if node not in seen]
        seen.update(new)
        left += new
    return seen
