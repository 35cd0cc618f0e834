"""What stands in a module for a parameter of which this rank has a piece."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import nn

from ditplan.profiles.errors import InputError

LOOKS = (
    {
        getattr(torch.Tensor, name).__get__
        for name in (
            *("device", "dtype", "grad", "is_cpu", "is_cuda", "is_leaf", "is_meta", "is_mkldnn"),
            *(
                "is_nested",
                "is_quantized",
                "is_sparse",
                "is_vulkan",
                "is_xla",
                "itemsize",
                "layout",
            ),
            *("nbytes", "ndim", "requires_grad", "shape", "is_mps", "is_xpu", "grad_fn"),
        )
    }
    | {
        getattr(torch.Tensor, name)
        for name in (
            *("__len__", "dim", "element_size", "get_device", "is_complex", "is_contiguous"),
            *("is_floating_point", "is_inference", "is_signed", "nelement", "numel", "ndimension"),
            *("requires_grad_", "size", "stride"),
        )
    }
    | {vars(torch._C.TensorBase)["requires_grad"].__set__}
)
"""What can be asked, or said, of a parameter without its values."""


class PieceParameter(nn.Parameter):
    """A parameter's looks; its values are on the ranks of a group, each with a piece of them.

    All that would read or write values is refused, except `copy_` into all of it, which each rank
    does with the same values and keeps its piece of.
    """

    _take: Callable[[torch.Tensor], None]

    def __new__(
        cls,
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
        take: Callable[[torch.Tensor], None],
    ) -> Self:
        """`take` gets what is copied into it."""
        looks = torch.empty((), dtype=dtype, device=device).expand(*shape)
        self: Self = torch.Tensor._make_subclass(cls, looks, False)
        self._take = take
        return self

    def __init__(self, *_: object) -> None:
        super().__init__()

    # as an object among others: in sets of parameters, and printed with its module
    __hash__ = object.__hash__

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"PieceParameter({tuple(self.shape)}, dtype={self.dtype}, device='{self.device}')"

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Answers what needs no values.

        Raises:
            InputError: it needs them.
        """
        given = kwargs or {}
        if func in LOOKS:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **given)
        if func is torch.Tensor.copy_ and isinstance(args[0], cls):
            args[0]._take(args[1] if len(args) > 1 else given["src"])
            return args[0]
        name = getattr(getattr(func, "__self__", func), "__name__", str(func))
        raise InputError(
            f"weights of a transformer that a plan has spread over ranks were asked for ({name}, "
            "as in fusing adapters, saving or moving the model); close the plan before, or use one "
            "with replicated weights"
        )


def flat_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's bytes, one behind the other; where it has them so, no copy is made."""
    tensor = tensor.detach()
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    flat = tensor.contiguous().reshape(-1)
    if flat.stride(0) != 1:
        # what has one number is contiguous by any stride
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8)
