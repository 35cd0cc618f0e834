"""One stage of a pipeline: the unmodified transformer's forward with some of its blocks.

The blocks before the stage hand on what they are given, the stage's first takes what was received
instead, and the first block after it ends the forward. So everything around the blocks stays the
model's own.
"""

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn

from ditplan.profiles.family import ModelFamily
from ditplan.runtime.modules import replace_forward
from ditplan.runtime.sequence import submodule
from ditplan.runtime.stale import KeyCache

Carried = tuple[torch.Tensor, ...]
Receive = Callable[[Carried], Carried]
"""Gives what the stage before sent, of the same shapes as what is given."""


class StageEnd(BaseException):
    """Leaves a forward after the stage's last block, with what goes to the next stage."""

    def __init__(self, carried: Carried) -> None:
        self.carried = carried


class Stage:
    """Blocks `first` to `last` (excluded) of a model, once it is applied."""

    def __init__(
        self, family: ModelFamily, first: int, last: int, receive: Receive | None, cache: KeyCache
    ) -> None:
        """`receive` is None for the first stage."""
        self._family, self._first, self._last = family, first, last
        self._receive, self._cache = receive, cache
        self._waiting = False
        self._passing = False

    def apply(self, model: nn.Module, undo: ExitStack) -> None:
        """Has the model's blocks behave so; closing `undo` takes that away again."""
        blocks = [
            block for path in self._family.blocks for block in submodule(model, path).children()
        ]
        for index, block in enumerate(blocks):
            names = tuple(inspect.signature(type(block).forward).parameters)[1:]
            replace_forward(block, partial(self._block, index, names, block.forward), undo)

    def run(self, forward: Callable[..., Any], inputs: dict[str, Any]) -> Any:
        """The stage's part of a forward: its output for the last stage, else what is carried on."""
        self._waiting = self._receive is not None
        try:
            return forward(**inputs)
        except StageEnd as end:
            return end.carried

    def pass_through(self, forward: Callable[..., Any], inputs: dict[str, Any]) -> Any:
        """A forward in which no block computes anything."""
        self._passing = True
        try:
            return forward(**inputs)
        finally:
            self._passing = False

    def _block(
        self,
        index: int,
        names: tuple[str, ...],
        own: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        given = dict(zip(names, args, strict=False)) | kwargs
        carried: Carried = tuple(given[name] for name in self._family.carried)
        if self._passing or index < self._first:
            return carried if len(carried) > 1 else carried[0]
        if self._waiting and self._receive is not None:
            self._waiting = False
            carried = self._receive(carried)
            given |= dict(zip(self._family.carried, carried, strict=True))
        if index >= self._last:
            raise StageEnd(carried)
        self._cache.layer = index
        return own(**given)
