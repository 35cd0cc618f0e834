"""Matrix products as operators that compiled blocks call: several at once, with GELU, by parts."""

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional


@torch.library.custom_op("ditplan::products", mutates_args=())
def products(
    value: torch.Tensor,
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor],
    gelu: bool,
) -> torch.Tensor:
    """Linear layers of one input side by side, (..., K) -> (..., sum of N).

    `biases` is empty or has one for each weight; `gelu` applies tanh-GELU, on GPUs in the epilogue
    of the product (cuBLASLt).
    """
    weight, bias = _joined(weights), _joined(biases) if biases else None
    if not gelu:
        return functional.linear(value, weight, bias)
    if value.device.type != "cuda" or bias is None:
        return functional.gelu(functional.linear(value, weight, bias), approximate="tanh")
    rows = value.reshape(-1, value.shape[-1])
    result = torch._addmm_activation(bias, rows, weight.t(), use_gelu=True)
    return result.view(*value.shape[:-1], weight.shape[0])


@products.register_fake
def _(
    value: torch.Tensor,
    weights: Sequence[torch.Tensor],
    _biases: Sequence[torch.Tensor],
    _gelu: bool,
) -> torch.Tensor:
    return value.new_empty(*value.shape[:-1], sum(weight.shape[0] for weight in weights))


@torch.library.custom_op("ditplan::product_of_parts", mutates_args=())
def product_of_parts(
    parts: Sequence[torch.Tensor], weight: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """A linear layer of parts that would be put together in their last dim, without doing so.

    (..., K_i) each -> (..., N), with the weight's K in the order of the parts.
    """
    weights = weight.split([part.shape[-1] for part in parts], dim=1)
    result = _sum_of_products(parts, weights, bias)
    return result.view(*parts[0].shape[:-1], weight.shape[0])


@product_of_parts.register_fake
def _(parts: Sequence[torch.Tensor], weight: torch.Tensor, _bias: torch.Tensor) -> torch.Tensor:
    return parts[0].new_empty(*parts[0].shape[:-1], weight.shape[0])


def product_of_parts_beside(
    arrive: Callable[[Callable[[], None]], torch.Tensor],
    others: Sequence[torch.Tensor],
    place: int,
    weight: torch.Tensor,
    bias: torch.Tensor,
) -> torch.Tensor:
    """`product_of_parts` where the part at `place` has yet to arrive.

    `arrive` calls what it is given, which multiplies the other parts, and returns that part.
    """
    widths = [part.shape[-1] for part in others]
    widths.insert(place, weight.shape[1] - sum(widths))
    columns = list(weight.split(widths, dim=1))
    late = columns.pop(place)
    found: list[torch.Tensor] = []
    part = arrive(lambda: found.append(_sum_of_products(others, columns, bias)))
    result = found[0].addmm_(part.reshape(-1, part.shape[-1]), late.t())
    return result.view(*part.shape[:-1], weight.shape[0])


def _sum_of_products(
    parts: Sequence[torch.Tensor], weights: Sequence[torch.Tensor], bias: torch.Tensor
) -> torch.Tensor:
    """(..., K_i) and (N, K_i) each -> (rows, N): one product each, added to those before."""
    first, *others = (part.reshape(-1, part.shape[-1]) for part in parts)
    result = torch.addmm(bias, first, weights[0].t())
    for part, weight in zip(others, weights[1:], strict=True):
        result.addmm_(part, weight.t())
    return result


PRODUCT_OF_PARTS = torch.ops.ditplan.product_of_parts.default
PRODUCTS = torch.ops.ditplan.products.default


def pack(parameters: Sequence[torch.nn.Parameter]) -> bool:
    """Moves parameters to where they follow each other in memory; their values stay.

    Returns:
        whether they had to be moved.
    """
    if side_by_side(parameters) is not None:
        return False
    together = torch.cat([parameter.data for parameter in parameters])
    rows = [parameter.shape[0] for parameter in parameters]
    for parameter, part in zip(parameters, together.split(rows), strict=True):
        parameter.data = part
    return True


def side_by_side(tensors: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """One tensor over all of these if they follow each other in memory, else None."""
    first, rows = tensors[0], sum(tensor.shape[0] for tensor in tensors)
    at = first.data_ptr()
    for tensor in tensors:
        if tensor.data_ptr() != at or not tensor.is_contiguous():
            return None
        at += tensor.numel() * tensor.element_size()
    held = first.untyped_storage()
    if at > held.data_ptr() + held.nbytes():
        return None
    return first.as_strided((rows, *first.shape[1:]), first.stride())


def _joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """One tensor over all of these: copied only in the first call, before they were packed."""
    together = side_by_side(tensors)
    return torch.cat(list(tensors)) if together is None else together
