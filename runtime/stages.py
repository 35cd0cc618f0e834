"""One stage of a pipeline: the unmodified transformer's forward with some of its blocks.

The blocks before the stage hand on what they are given, the stage's first takes what was received
instead, and the first block after it ends the forward. So everything around the blocks stays the
model's own.
"""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn

from ditplan.profiles.family import ModelFamily
from ditplan.runtime.modules import carried_by, handed_on, names_arguments, replace_forward
from ditplan.runtime.sequence import submodule
from ditplan.runtime.stale import KeyCache

Carried = tuple[torch.Tensor, ...]
"""What goes from block to block."""


class StageEnd(BaseException):
    """Leaves a forward after the stage's last block, with what goes to the next stage."""

    def __init__(self, carried: Carried) -> None:
        self.carried = carried


class Stage:
    """Blocks `first` to `last` (excluded) of a model, once it is applied."""

    def __init__(self, family: ModelFamily, first: int, last: int, cache: KeyCache) -> None:
        self._family, self._first, self._last, self._cache = family, first, last, cache
        self._received: Carried | None = None
        self._computes = True

    def apply(self, model: nn.Module, undo: ExitStack) -> None:
        """Has the model's blocks behave so; closing `undo` takes that away again."""
        blocks = [
            block for path in self._family.blocks for block in submodule(model, path).children()
        ]
        for index, block in enumerate(blocks):
            own, named = block.forward, names_arguments(block)
            replace_forward(block, partial(self._block, index, named, own), undo)

    def run(
        self, forward: Callable[..., Any], inputs: dict[str, Any], received: Carried | None
    ) -> Any:
        """The stage's part of a forward: its output for the last stage, else what is carried on.

        `received` is what the stage before carried on, None for the first.
        """
        self._received = received
        try:
            return forward(**inputs)
        except StageEnd as end:
            return end.carried
        finally:
            self._received = None

    def entered(self, forward: Callable[..., Any], inputs: dict[str, Any]) -> Carried:
        """What this rank's own model would carry into its first block: the shapes to receive."""
        last, self._last = self._last, self._first
        try:
            carried: Carried = self.run(forward, inputs, None)
        finally:
            self._last = last
        return carried

    def pass_through(self, forward: Callable[..., Any], inputs: dict[str, Any]) -> Any:
        """A forward in which no block computes anything."""
        self._computes = False
        try:
            return forward(**inputs)
        finally:
            self._computes = True

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
        if not self._computes or index < self._first:
            return handed_on(carried)
        if self._received is not None:
            # by the first block of the stage that is called: a pipeline may skip some
            names = [name for name in self._family.carried if given.get(name) is not None]
            carried, self._received = self._received, None
            given |= dict(zip(names, carried, strict=True))
        if index >= self._last:
            raise StageEnd(carried)
        self._cache.layer = index
        return own(**given)
