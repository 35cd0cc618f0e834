"""Masks that a transformer makes for its blocks, where a batch has samples of unlike lengths."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from ditplan.profiles.family import TextMask
from ditplan.runtime.takeover import change_arguments


def note_mask_of_blocks(
    blocks: Sequence[nn.Module],
    mask: TextMask,
    note: Callable[[dict[str, torch.Tensor]], None],
    undo: ExitStack,
) -> None:
    """Has `note` get the mask of each call, by segment, from the first block, and all blocks none.

    Closing `undo` takes that away again.
    """

    def noted(given: dict[str, Any]) -> dict[str, Any]:
        found = given.get(mask.argument)
        note({} if found is None else {mask.segment: found.bool()})
        return given

    def without(given: dict[str, Any]) -> dict[str, Any]:
        return given | {mask.argument: None}

    change_arguments(blocks[0], noted, undo)
    for block in blocks:
        change_arguments(block, without, undo)
