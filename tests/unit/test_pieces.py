"""What stands for a parameter in pieces: it looks like one, and nobody computes with it."""

import pickle
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from ditplan.profiles.errors import InputError
from ditplan.runtime.weights.pieces import PieceParameter, flat_bytes
from ditplan.runtime.weights.sharded import shard


@pytest.fixture
def taken() -> list[torch.Tensor]:
    """What was copied into the parameter."""
    return []


@pytest.fixture
def layer(taken: list[torch.Tensor]) -> nn.Linear:
    """A linear layer whose weight is in pieces."""
    made = nn.Linear(4, 3)
    cpu = torch.device("cpu")
    made.weight = PieceParameter((3, 4), torch.float32, cpu, taken.append)
    return made


def test_a_parameter_in_pieces_looks_like_one(layer: nn.Linear) -> None:
    weight = layer.weight
    assert (weight.shape, weight.dtype, weight.device.type) == ((3, 4), torch.float32, "cpu")
    assert (weight.numel(), weight.dim(), len(weight), weight.nbytes) == (12, 2, 3, 48)
    assert weight.is_floating_point()
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
    layer.requires_grad_(True)
    assert weight.requires_grad
    assert "(3, 4)" in repr(weight)


@pytest.mark.parametrize(
    "use",
    [
        lambda layer: layer(torch.ones(1, 4)),
        lambda layer: layer.state_dict(),
        lambda layer: layer.to(torch.bfloat16),
        lambda layer: layer.weight.data,
        lambda layer: layer.weight + 1,
        lambda layer: layer.weight.fill_(0),
        lambda layer: layer.weight.data_ptr(),
        lambda layer: layer.weight.tolist(),
        lambda layer: setattr(layer.weight, "data", torch.ones(3, 4)),
        pickle.dumps,
    ],
)
def test_nobody_computes_with_it(layer: nn.Linear, use: Callable[[nn.Linear], Any]) -> None:
    with pytest.raises(InputError, match="that a plan has spread over ranks were asked for"):
        use(layer)


def test_what_is_loaded_into_it_is_taken(layer: nn.Linear, taken: list[torch.Tensor]) -> None:
    weights = {"weight": torch.randn(3, 4), "bias": torch.zeros(3)}
    layer.load_state_dict(weights)
    (found,) = taken
    assert torch.equal(found, weights["weight"])


class Quantized(nn.Parameter):
    """A parameter of a class of its own, as quantization makes."""


def test_quantized_weights_are_not_spread_over_ranks() -> None:
    block = nn.Linear(4, 3)
    block.weight = Quantized(torch.ones(3, 4))
    group: Any = None
    with pytest.raises(InputError, match="weight of a Linear is a Quantized"), ExitStack() as undo:
        shard(nn.Sequential(block), [block], group, torch.device("cpu"), undo)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([[1.0, 2.0], [3.0, 4.0]]).t(),
        torch.tensor(3.0).expand(1),
        torch.arange(6.0)[::5][:1],
        torch.tensor([1 + 2j]).conj(),
    ],
    ids=["turned", "expanded", "one of a row", "conjugated"],
)
def test_bytes_of_any_layout_are_those_of_its_values(tensor: torch.Tensor) -> None:
    found = flat_bytes(tensor)
    assert bytes(found.tolist()) == numpy.ascontiguousarray(tensor.resolve_conj().numpy()).tobytes()
