"""Rewrites of a block's graph keep its results, and happen only where they should."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.attention import JointTransformerBlock
from diffusers.models.transformers.transformer_flux import (
    FluxSingleTransformerBlock,
    FluxTransformerBlock,
)
from torch import nn
from torch.nn import functional

from ditplan.runtime.compilation.products import (
    PRODUCT_OF_PARTS,
    PRODUCTS,
    pack,
    products,
    side_by_side,
)
from tests.unit.rewriting import CLOSE, rewritten


class Several(nn.Module):
    """Linear layers of one input, some of them without bias."""

    def __init__(self, biased: int, plain: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Linear(8, 4 + i) for i in range(biased)]
            + [nn.Linear(8, 5 + i, bias=False) for i in range(plain)]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 8) -> (B, all outputs)."""
        return torch.cat([layer(x) * (i + 1) for i, layer in enumerate(self.layers)], dim=-1)


@pytest.mark.parametrize(
    ("biased", "plain", "fused", "left"), [(3, 0, 1, 0), (3, 1, 1, 1), (2, 2, 2, 0), (1, 1, 0, 2)]
)
def test_linear_layers_of_one_input_become_one_product(
    biased: int, plain: int, fused: int, left: int
) -> None:
    found = rewritten(Several(biased, plain), torch.randn(3, 8))
    assert found.count(PRODUCTS) == fused
    assert found.count(torch._C._nn.linear) == left


def test_weights_to_pack_are_named_by_their_paths_below_the_block() -> None:
    found = rewritten(Several(2, 0), torch.randn(3, 8))
    assert found.packed == [
        ("layers.0.weight", "layers.1.weight"),
        ("layers.0.bias", "layers.1.bias"),
    ]


class Borrowed(nn.Module):
    """Two linear layers of one input, one with a weight that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.other = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 8) -> (B, 4)."""
        own: torch.Tensor = self.own(x)
        return own + functional.linear(x, self.other.weight * 2, self.other.bias)


def test_a_weight_that_is_computed_is_left_alone() -> None:
    assert rewritten(Borrowed(), torch.randn(3, 8)).count(PRODUCTS) == 0


class Activated(nn.Module):
    """A linear layer and its GELU; `also_read` reads what comes between as well."""

    def __init__(self, approximate: str, also_read: bool = False, bias: bool = True) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4, bias=bias)
        self.gelu = nn.GELU(approximate=approximate)
        self.also_read = also_read

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 8) -> (B, 4)."""
        hidden: torch.Tensor = self.layer(x)
        activated: torch.Tensor = self.gelu(hidden)
        return activated + hidden if self.also_read else activated


@pytest.mark.parametrize(
    ("module", "fused"),
    [
        (Activated("tanh"), 1),
        (Activated("none"), 0),
        (Activated("tanh", also_read=True), 0),
        (Activated("tanh", bias=False), 0),
    ],
)
def test_only_a_tanh_gelu_that_alone_reads_a_biased_layer_goes_into_it(
    module: nn.Module, fused: int
) -> None:
    assert rewritten(module, torch.randn(3, 8)).count(PRODUCTS) == fused


class Joined(nn.Module):
    """A linear layer of two tensors put together along a dim."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.layer, self.dim = nn.Linear(width, 4), dim

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """(B, S, K) and (B, S', K') -> (B, S'', 4)."""
        result: torch.Tensor = self.layer(torch.cat([a, b], dim=self.dim))
        return result


@pytest.mark.parametrize(("dim", "width", "by_parts"), [(2, 16, 1), (-1, 16, 1), (1, 8, 0)])
def test_a_layer_of_tensors_put_together_in_their_last_dim_multiplies_the_parts(
    dim: int, width: int, by_parts: int
) -> None:
    module, inputs = Joined(dim, width), (torch.randn(2, 3, 8), torch.randn(2, 3, 8))
    assert rewritten(module, *inputs).count(PRODUCT_OF_PARTS) == by_parts


class Transposed(nn.Module):
    """Transposed tensors put together, as joint attention's heads are."""

    def __init__(self, dims: tuple[int, int], dim: int) -> None:
        super().__init__()
        self.dims, self.dim = dims, dim

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """(B, S, H, D) and (B, S', H, D) -> the transposed ones together."""
        return torch.cat([a.transpose(1, 2), b.transpose(*self.dims)], dim=self.dim) * 2


@pytest.mark.parametrize(
    ("dims", "dim", "shapes", "moved"),
    [
        ((1, 2), 2, ((2, 3, 5, 4), (2, 7, 5, 4)), True),
        ((1, 2), 1, ((2, 3, 5, 4), (2, 3, 6, 4)), True),
        ((1, 2), 3, ((2, 3, 5, 4), (2, 3, 5, 6)), False),
        ((2, 1), 2, ((2, 3, 5, 4), (2, 7, 5, 4)), False),
    ],
)
def test_transposed_tensors_are_put_together_first(
    dims: tuple[int, int], dim: int, shapes: tuple[tuple[int, ...], tuple[int, ...]], moved: bool
) -> None:
    a, b = (torch.randn(shape) for shape in shapes)
    found = rewritten(Transposed(dims, dim), a, b)
    (cat,) = (node for node in found.graph.nodes if node.target is torch.cat)
    assert all(piece.op == "placeholder" for piece in cat.args[0]) == moved


def test_blocks_of_sd3_and_flux_give_what_they_gave() -> None:
    torch.manual_seed(0)
    image, text, condition = torch.randn(2, 9, 80), torch.randn(2, 7, 80), torch.randn(2, 80)
    block = JointTransformerBlock(80, 5, 16).eval()
    sd3 = rewritten(block, image, text, condition)
    assert sd3.count(PRODUCTS) == 5
    assert len(sd3.packed) == 6
    double = rewritten(FluxTransformerBlock(80, 5, 16).eval(), image, text, condition)
    assert double.count(PRODUCTS) == 5
    single = rewritten(FluxSingleTransformerBlock(80, 5, 16).eval(), image, text, condition)
    assert single.count(PRODUCTS) == 2
    assert single.count(PRODUCT_OF_PARTS) == 1


def test_packed_parameters_keep_their_values_and_lie_side_by_side() -> None:
    parameters = [nn.Parameter(torch.randn(rows, 6)) for rows in (4, 1, 3)]
    before = torch.cat([parameter.detach().clone() for parameter in parameters])
    assert side_by_side(parameters) is None
    assert pack(parameters)
    together = side_by_side(parameters)
    assert together is not None
    assert torch.equal(together, before)
    assert all(parameter.is_contiguous() for parameter in parameters)
    at = parameters[0].data_ptr()
    assert not pack(parameters)
    assert parameters[0].data_ptr() == at


def test_parts_that_only_seem_to_follow_each_other_are_not_side_by_side() -> None:
    whole = torch.randn(6, 4)
    assert side_by_side([whole[:2], whole[3:]]) is None
    assert side_by_side([whole[2:], whole[:2]]) is None
    assert side_by_side([whole[:, :2], whole[:, 2:]]) is None


@pytest.mark.parametrize("packed", [False, True])
def test_a_product_is_the_same_wherever_its_weights_lie(packed: bool) -> None:
    layers = [nn.Linear(8, rows) for rows in (4, 3)]
    value = torch.randn(2, 5, 8)
    weights: list[nn.Parameter] = [layer.get_parameter("weight") for layer in layers]
    biases: list[nn.Parameter] = [layer.get_parameter("bias") for layer in layers]
    expected = torch.cat([layer(value) for layer in layers], dim=-1)
    if packed:
        pack(weights)
        pack(biases)
    found = products(value, weights, biases, False)
    assert (found - expected).abs().max() <= CLOSE


class Calling(nn.Module):
    """Whatever a function computes with two layers, `a` and `b`."""

    def __init__(
        self, do: Callable[..., Any], layer: Callable[[], nn.Module] | None = None
    ) -> None:
        super().__init__()
        make = layer or (lambda: nn.Linear(8, 4))
        self.do, self.a, self.b = do, make(), make()

    def forward(self, *inputs: torch.Tensor) -> Any:
        """What the function gives."""
        return self.do(self, *inputs)


class OfBuffer(nn.Module):
    """A layer whose weight is a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(4, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., 8) -> (..., 4)."""
        return functional.linear(x, self.get_buffer("weight"))


class Quantized(nn.Parameter):
    """A parameter of a class of its own, which has its own kernels."""


class OfQuantized(nn.Module):
    """A layer whose weight is quantized."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = Quantized(torch.randn(4, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., 8) -> (..., 4)."""
        return functional.linear(x, self.weight)


@pytest.mark.parametrize("layer", [OfBuffer, OfQuantized])
def test_weights_that_are_no_plain_parameters_are_left_alone(
    layer: Callable[[], nn.Module],
) -> None:
    found = rewritten(Calling(lambda m, x: m.a(x) + m.b(x), layer), torch.randn(3, 8))
    assert found.count(PRODUCTS) == 0
    assert found.packed == []


def test_layers_called_by_keywords_become_one_product() -> None:
    def both(module: Any, x: torch.Tensor) -> list[torch.Tensor]:
        layers = module.a, module.b
        return [functional.linear(input=x, weight=m.weight, bias=m.bias) for m in layers]

    assert rewritten(Calling(both), torch.randn(3, 8)).count(PRODUCTS) == 1


@pytest.mark.parametrize(("inplace", "left"), [(False, 1), (True, 2)])
def test_silus_of_one_tensor_are_merged_unless_they_change_it(inplace: bool, left: int) -> None:
    def both(_module: Any, x: torch.Tensor) -> torch.Tensor:
        x = x * 2
        return functional.silu(x, inplace=inplace) + functional.silu(x, inplace=inplace)

    found = rewritten(Calling(both), torch.randn(3, 8))
    assert found.count(functional.silu) == left


def test_what_only_looks_like_transposes_is_put_together_as_it_is() -> None:
    module = Calling(lambda _module, x, y: torch.cat([x.roll(1, 2), y.roll(1, 2)], 1))
    rewritten(module, torch.randn(3, 3, 3), torch.randn(3, 3, 3))


def test_transposed_parts_are_not_side_by_side() -> None:
    whole = torch.randn(8, 4)
    assert side_by_side([whole[:4].t(), whole[4:]]) is None


def test_parts_that_meet_by_chance_in_two_storages_are_not_side_by_side() -> None:
    memory = bytearray(32)
    first, second = (
        torch.frombuffer(memory, dtype=torch.float32, count=4, offset=at) for at in (0, 16)
    )
    assert first.data_ptr() + first.nbytes == second.data_ptr()
    assert side_by_side([first, second]) is None


@pytest.mark.parametrize("gelu", [True, False])
def test_products_promise_the_compiler_the_shape_that_they_give(gelu: bool) -> None:
    weights = [torch.randn(rows, 8) for rows in (3, 8, 1)]
    arguments = (torch.randn(2, 5, 8), weights, [torch.randn(rows) for rows in (3, 8, 1)], gelu)
    torch.library.opcheck(PRODUCTS, arguments, test_utils=("test_schema", "test_faketensor"))


def test_calls_by_keywords_are_rewritten_alike() -> None:
    def named(module: Any, x: torch.Tensor) -> Any:
        twice = functional.silu(input=x) + functional.silu(input=x)
        active = functional.gelu(input=module.a(twice), approximate="tanh")
        return module.b(torch.cat(tensors=[active, active], dim=-1))

    found = rewritten(Calling(named), torch.randn(3, 8))
    assert (found.count(functional.silu), found.count(PRODUCTS)) == (1, 1)
    assert found.count(PRODUCT_OF_PARTS) == 1


def test_a_layer_that_is_called_twice_is_not_packed_with_itself() -> None:
    found = rewritten(Calling(lambda m, x: m.a(x) + m.a(x) + m.b(x)), torch.randn(3, 8))
    assert all(len(set(paths)) == len(paths) for paths in found.packed)


def test_weights_from_elsewhere_are_left_alone() -> None:
    others = [nn.Linear(8, 4), nn.Linear(8, 4)]
    found = rewritten(Calling(lambda _m, x: [layer(x) for layer in others]), torch.randn(3, 8))
    assert found.packed == []
