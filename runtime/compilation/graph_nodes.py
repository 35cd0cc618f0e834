"""What a node of a block's graph computes, as the rewrites ask."""

import re
from typing import Any

import torch
from torch import fx
from torch._subclasses import FakeTensor

LINEAR = torch._C._nn.linear

OWN_PARAMETER = re.compile(r"L\['self'\]((?:\._modules\['[^']+'\])*\._parameters\['[^']+'\])")
"""As in L['self']._modules['attn']._modules['to_q']._parameters['weight']."""


def argument(node: fx.Node, place: int, *names: str, default: Any = None) -> Any:
    """An argument of a call, given by its place or by one of its names."""
    if place < len(node.args):
        return node.args[place]
    return next((node.kwargs[name] for name in names if name in node.kwargs), default)


def inputs_of_linear(node: fx.Node) -> tuple[fx.Node, ...]:
    """Input, weight and, where there is one, bias of a linear layer."""
    given = [argument(node, i, name) for i, name in enumerate(("input", "weight", "bias"))]
    return tuple(each for each in given if isinstance(each, fx.Node))


def is_own_linear(node: fx.Node) -> bool:
    """Whether a node is a linear layer of the block's own parameters."""
    return node.target is LINEAR and all(map(_is_plain_parameter, inputs_of_linear(node)[1:]))


def shape_of(node: fx.Node) -> torch.Size:
    """The shape of a tensor that the graph was traced with."""
    example: torch.Tensor = node.meta["example_value"]
    return example.shape


def parameter_path(placeholder: fx.Node) -> str:
    """The dotted path below the block of the parameter that an input stands for; "" for others."""
    name = placeholder.meta["grapharg"].source.name
    found = OWN_PARAMETER.fullmatch(name() if callable(name) else name)
    return ".".join(re.findall(r"\['([^']+)'\]", found[1])) if found else ""


def add_examples(graph: fx.Graph) -> None:
    """Gives nodes that rewrites have put in what dynamo gives its own: a fake of their result.

    AOTAutograd's cache takes no graph that calls methods of what has none.
    """
    known = (node.meta.get("example_value") for node in graph.nodes)
    mode = next((one.fake_mode for one in known if isinstance(one, FakeTensor)), None)
    if mode is None:
        return
    for node in graph.nodes:
        if node.op not in ("call_function", "call_method") or "example_value" in node.meta:
            continue
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda one: one.meta["example_value"])
        function = getattr(type(args[0]), node.target) if node.op == "call_method" else node.target
        with mode, torch.no_grad():
            node.meta["example_value"] = function(*args, **kwargs)


def _is_plain_parameter(node: fx.Node) -> bool:
    """Whether a node is a parameter of the block, without a class (quantization) of its own."""
    if node.op != "placeholder" or "grapharg" not in node.meta or not parameter_path(node):
        return False
    return type(node.meta["grapharg"].example) is torch.nn.Parameter
