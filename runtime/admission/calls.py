"""The calls of a plan's pipeline, and what is done around each."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch

Around = Callable[[], AbstractContextManager[Any]]


class Calls:
    """The calls of a plan's pipeline; each is made within all of `around`.

    `pieces` say of which weights a rank has only a piece, `graphs` forget what was captured.
    """

    def __init__(self) -> None:
        self.around: list[Around] = []
        self.pieces: list[Callable[[torch.Tensor], bool]] = []
        self.graphs: list[Callable[[], None]] = []
        self._is_in_call = False

    @property
    def is_in_call(self) -> bool:
        """Whether one is being made."""
        return self._is_in_call

    def run(self, pipeline: Any, own: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Makes one; gives what it gives."""
        with ExitStack() as undo:
            for around in self.around:
                undo.enter_context(around())
            self._is_in_call = True
            undo.callback(setattr, self, "_is_in_call", False)
            return own(pipeline, *args, **kwargs)
