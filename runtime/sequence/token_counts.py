"""Lengths of segments in a call: all that is cut must agree on them, and so must what counts them.

HunyuanVideo from a picture, for instance, tells its blocks how many tokens the first frame has.
"""

from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from ditplan.profiles.errors import InputError
from ditplan.profiles.family import ModelFamily, Split
from ditplan.runtime.sequence.layout import Layout
from ditplan.runtime.takeover import change_arguments, inner_forward, replace_forward, submodule


class SegmentLengths:
    """How long each segment of a call is: as the first tensor of it that is cut."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[int, str]] = {}

    def apply(self, model: nn.Module, undo: ExitStack) -> None:
        """Has each call of the model begin anew; closing `undo` takes that away again."""
        whole = inner_forward(model)

        def forward(*args: Any, **kwargs: Any) -> Any:
            self._first.clear()
            return whole(*args, **kwargs)

        replace_forward(model, forward, undo)

    def require(self, split: Split, tensor: torch.Tensor) -> None:
        """Refuses a tensor that isn't as long as others of its segment.

        Raises:
            InputError: names both.
        """
        length = tensor.shape[split.dim]
        expected, name = self._first.setdefault(split.segment, (length, split.name))
        if length != expected:
            raise InputError(
                f"{split.name} has {length} {split.segment} tokens and {name} has {expected}, so "
                "they can't be split alike; give them the same number, or use a plan with ring, "
                "ulysses and pipefusion of 1"
            )


def apply_counts(model: nn.Module, family: ModelFamily, layout: Layout, undo: ExitStack) -> None:
    """Has blocks count those of the tokens that this rank has; closing `undo` takes that away.

    To be applied after the splits, by which the segments' lengths are known.
    """
    for count in family.counts:

        def change(
            given: dict[str, Any], name: str = count.name, segment: str = count.segment
        ) -> dict[str, Any]:
            if given.get(name) is None:
                return given
            first, last = layout.held(segment)
            return given | {name: min(max(given[name] - first, 0), last - first)}

        for path in family.blocks:
            for block in submodule(model, path).children():
                change_arguments(block, change, undo)
