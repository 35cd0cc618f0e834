"""Texts of any length under a plan: rounded up to one of its sizes, with a mask for what is added.

Compiled code and captured graphs are made for shapes. So each size has its own, and a new length
makes none. The mask has attention leave out what was added, wherever the plan's exchanges put it;
all else in a transformer is done token by token. The result is that of the text's own length.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ditplan.profiles.family import ModelFamily
from ditplan.profiles.text_sizes import size_for
from ditplan.runtime.takeover import inner_forward, names_arguments, replace_forward

TOKENS = "text_tokens"
"""What a family calls the dim of a text's tokens."""


def round_texts(
    model: nn.Module, family: ModelFamily, sizes: Sequence[int], undo: ExitStack
) -> None:
    """Has texts be as long as the next of `sizes`, if any; closing `undo` takes that away again.

    Raises (when the model is called):
        InputError: a text is longer than all sizes.
    """
    if not sizes:
        return
    whole, named = inner_forward(model), names_arguments(model)

    def forward(*args: Any, **kwargs: Any) -> Any:
        return whole(**rounded(named(*args, **kwargs), family, sizes))

    replace_forward(model, forward, undo)


def rounded(given: dict[str, Any], family: ModelFamily, sizes: Sequence[int]) -> dict[str, Any]:
    """A call's arguments with its texts rounded up, and always with a mask: a text that is as long
    as its size then looks like all others.

    Raises:
        InputError: a text is longer than all sizes.
    """
    mask = family.text_mask.input if family.text_mask else None
    dims = {
        name: names.index(TOKENS)
        for name, names in family.inputs.items()
        if TOKENS in names and isinstance(given.get(name), torch.Tensor)
    }
    texts = [name for name in dims if name != mask]
    if mask is None or not texts:
        return given
    first = given[texts[0]]
    length = first.shape[dims[texts[0]]]
    if given.get(mask) is None:
        given = given | {mask: first.new_ones((first.shape[0], length), dtype=torch.bool)}
        dims[mask] = 1
    added = size_for(sizes, length) - length
    return given | {name: _lengthened(given[name], dim, added) for name, dim in dims.items()}


def _lengthened(tensor: torch.Tensor, dim: int, added: int) -> torch.Tensor:
    """So many zeros behind a tensor's last token."""
    return functional.pad(tensor, (0, 0) * (tensor.ndim - 1 - dim) + (0, added))
