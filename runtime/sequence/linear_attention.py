"""Blocks with linear attention and convolutions, over a picture that is split in whole rows.

The state of linear attention is a sum over all tokens, so ranks add up theirs (Sana, arXiv
2410.10629, section 2.2); it is smaller than any exchange of heads. A 3x3 convolution wants the row
before a rank's first and the one after its last, which its neighbours have.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional

from ditplan.profiles.errors import InputError
from ditplan.profiles.family import ModelFamily
from ditplan.runtime.collectives import all_gather_uneven
from ditplan.runtime.compilation.operators import NAMESPACE, define_operator
from ditplan.runtime.groups import AxisGroup
from ditplan.runtime.sequence.interception import Interceptor, intercepted
from ditplan.runtime.sequence.layout import Layout
from ditplan.runtime.takeover import (
    change_arguments,
    inner_forward,
    matching_modules,
    names_arguments,
    replace_forward,
    submodule,
    take_class,
)


class RowOperators:
    """What blocks ask other ranks for, as opaque operators of torch; they live as long as this."""

    def __init__(self, group: AxisGroup, scope: str) -> None:
        """`scope` is of a plan, and part of the operators' names."""
        self._group = group
        self._library = torch.library.Library(NAMESPACE, "FRAGMENT")
        signature = "(Tensor value) -> Tensor"
        self.summed = define_operator(
            self._library, f"state_sum_{scope}", signature, self._summed, torch.empty_like
        )
        self.with_neighbours = define_operator(
            self._library,
            f"with_neighbours_{scope}",
            signature,
            self._with_neighbours,
            _two_more_rows,
        )

    def _summed(self, state: torch.Tensor) -> torch.Tensor:
        """The sum of all ranks' states."""
        total = state.contiguous().clone()
        dist.all_reduce(total, group=self._group.group)
        return total

    def _with_neighbours(self, rows: torch.Tensor) -> torch.Tensor:
        """(B, C, rows, W) -> (B, C, rows + 2, W): zeros beyond the picture's edges."""
        edges = torch.stack([rows[:, :, 0], rows[:, :, -1]])[None]
        all_edges = all_gather_uneven(edges, 0, (1,) * self._group.size, self._group)
        me, nothing = self._group.index, torch.zeros_like(edges[0, 0])
        before = all_edges[me - 1, 1] if me else nothing
        after = all_edges[me + 1, 0] if me + 1 < self._group.size else nothing
        return torch.cat([before[:, :, None], rows, after[:, :, None]], 2)


def _two_more_rows(rows: torch.Tensor) -> torch.Tensor:
    batch, channels, height, width = rows.shape
    return rows.new_empty(batch, channels, height + 2, width)


def apply_rows(
    model: nn.Module, family: ModelFamily, layout: Layout, operators: RowOperators, undo: ExitStack
) -> None:
    """Has the model split its picture in whole rows; closing `undo` takes that away again.

    To be applied after the splits: how wide a row is must be known before inputs are cut.

    Raises:
        InputError: the model has no such modules, or a convolution of another kind.
    """
    rows = family.rows
    if rows is None:
        return
    for name, module in _found(model, rows.linear_attentions):
        attention: Any = type(module)
        take_class(
            module, intercepted(attention, StateSum), name, undo, _ask_ranks=operators.summed
        )
    for name, module in _found(model, rows.convolutions):
        if not isinstance(module, nn.Conv2d) or module.kernel_size != (3, 3):
            raise InputError(f"{name} is no 3x3 convolution; family {family.name} doesn't fit it")
        take_class(module, _RowConvolution, name, undo, _ask_ranks=operators.with_neighbours)
    whole, named = inner_forward(model), names_arguments(model)

    def forward(*args: Any, **kwargs: Any) -> Any:
        given = named(*args, **kwargs)
        patch: Any = model.config["patch_size"]  # type: ignore[index]
        layout.units[rows.segment] = given[rows.input].shape[-1] // patch
        return whole(**given)

    def with_own_rows(given: dict[str, Any]) -> dict[str, Any]:
        mine = layout.sizes([rows.segment])[layout.groups.index]
        return given | {rows.argument: mine // layout.units[rows.segment]}

    for block in submodule(model, family.blocks[0]).children():
        change_arguments(block, with_own_rows, undo)
    replace_forward(model, forward, undo)


def _found(model: nn.Module, pattern: str) -> Sequence[tuple[str, nn.Module]]:
    found = matching_modules(model, pattern)
    if not found:
        raise InputError(f"{type(model).__name__} has no module that matches {pattern}")
    return found


class _RowConvolution(nn.Conv2d):
    """A 3x3 convolution of this rank's rows, with those of its neighbours beside."""

    _ask_ranks: Callable[[torch.Tensor], torch.Tensor]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(
            self._ask_ranks(input),
            self.weight,
            self.bias,
            padding=(0, 1),
            groups=self.groups,
        )


class StateSum(Interceptor):
    """While entered, the first matrix product is summed over ranks: values times keys."""

    functions = (torch.matmul, torch.Tensor.matmul)
    expected = 2

    def answer(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> torch.Tensor:
        """A product, or the sum of all ranks'."""
        result: torch.Tensor = func(*args, **kwargs)
        return self._module._ask_ranks(result) if self.calls == 1 else result

    def gone_around(self) -> str:
        """As `Interceptor`."""
        return (
            f"a linear attention made {self.calls} matrix products in one forward, two "
            "were expected: a processor goes around them, so the picture can't be split"
        )
