"""One stage of a pipeline: the unmodified transformer's forward with some of its blocks.

The blocks before the stage hand on what they are given, the stage's first takes what was received
instead, and the first block after it ends the forward. So everything around the blocks stays the
model's own.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from ditplan.profiles.family import ModelFamily
from ditplan.runtime.sequence.layout import Layout, Visiting
from ditplan.runtime.takeover import (
    carried_by,
    handed_on,
    inner_forward,
    names_arguments,
    replace_forward,
    submodule,
)

Carried = tuple[torch.Tensor, ...]
"""What goes from block to block."""

Skips = dict[int, torch.Tensor]
"""What blocks of a stage returned, by their numbers, which others of it take later."""


class StageEnd(BaseException):
    """Leaves a forward after the stage's last block, with what goes to the next stage."""

    def __init__(self, carried: Carried) -> None:
        self.carried = carried


class Stage:
    """Some blocks of a model, once it is applied: those of a visit at a time."""

    def __init__(self, family: ModelFamily, layout: Layout) -> None:
        self._family, self._layout = family, layout
        self._count = 0
        self._blocks = range(0)
        self._received: Carried | None = None
        self._skips: Skips = {}

    def apply(self, model: nn.Module, undo: ExitStack) -> None:
        """Has the model's blocks behave so; closing `undo` takes that away again."""
        blocks = [
            block for path in self._family.blocks for block in submodule(model, path).children()
        ]
        self._count = len(blocks)
        for index, block in enumerate(blocks):
            own, named = inner_forward(block), names_arguments(block)
            replace_forward(block, partial(self._block, index, named, own), undo)

    def run(
        self,
        forward: Callable[..., Any],
        inputs: dict[str, Any],
        visiting: Visiting,
        blocks: range,
        received: Carried | None = None,
        skips: Skips | None = None,
    ) -> tuple[Any, Skips]:
        """These blocks' part of a forward: its output if it ends with them, else what is carried
        on; and what blocks returned that come before others they skip to.

        `received` is what the blocks before carried on, None for the first ones. `skips` are of an
        earlier run for the same patch.
        """
        self._blocks, self._received, self._skips = blocks, received, dict(skips or {})
        try:
            with self._layout.during(visiting):
                output = forward(**inputs)
        except StageEnd as end:
            output = end.carried
        finally:
            made, self._received, self._skips = self._skips, None, {}
        return output, made

    def entered(
        self, forward: Callable[..., Any], inputs: dict[str, Any], visiting: Visiting, blocks: range
    ) -> Carried:
        """What this rank's own model would carry into the first block: the shapes to receive."""
        carried: Carried
        carried, _ = self.run(forward, inputs, visiting, range(blocks.start, blocks.start))
        return carried

    def pass_through(self, forward: Callable[..., Any], inputs: dict[str, Any]) -> Any:
        """A forward of the whole sequence in which no block computes anything."""
        behind_all = range(self._count, self._count + 1)
        output, _ = self.run(forward, inputs, Visiting(), behind_all)
        return output

    def _block(
        self,
        index: int,
        named: Callable[..., dict[str, Any]],
        own: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        given = named(*args, **kwargs)
        carried = carried_by(self._family.carried, given)
        if index in self._skips:
            return self._skips[index]
        if index < self._blocks.start:
            return handed_on(carried)
        if self._received is not None:
            # by the first block of the stage that is called: a pipeline may skip some
            names = [name for name in self._family.carried if given.get(name) is not None]
            carried, self._received = self._received, None
            given |= dict(zip(names, carried, strict=True))
        if index >= self._blocks.stop:
            raise StageEnd(carried)
        with self._layout.during(replace(self._layout.visiting, layer=index)):
            output = own(**given)
        if self._family.long_skips:
            self._skips[index] = output
        return output
