"""The calls of a plan's pipeline, and what is done around each."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch import nn

Around = Callable[[], AbstractContextManager[Any]]

Watch = Callable[[Hashable], AbstractContextManager[Any]]
"""Made around a call of some kind: calls of one kind are given the same arguments but for their
values.
"""


def kind_of_call(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Hashable:
    """Which arguments a pipeline's call is given, and which form of output it is asked for."""
    named = frozenset(name for name, value in kwargs.items() if value is not None)
    return len(args), named, str(kwargs.get("output_type"))


class Calls:
    """The calls of a plan's pipeline; each is made within all of `around`.

    `pieces` say of which weights a rank has only a piece, `graphs` forget what was captured,
    `watches` are made around each call as well, and told of which kind it is. `weights_moved` is
    told which weights the plan itself has moved.
    """

    def __init__(self) -> None:
        self.around: list[Around] = []
        self.watches: list[Watch] = []
        self.pieces: list[Callable[[torch.Tensor], bool]] = []
        self.graphs: list[Callable[[], None]] = []
        self.weights_moved: Callable[[Sequence[nn.Parameter]], None] = lambda _weights: None
        self._is_in_call = False

    @property
    def is_in_call(self) -> bool:
        """Whether one is being made."""
        return self._is_in_call

    def run(self, pipeline: Any, own: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Makes one; gives what it gives."""
        with ExitStack() as undo:
            for watch in self.watches:
                undo.enter_context(watch(kind_of_call(args, kwargs)))
            for around in self.around:
                undo.enter_context(around())
            self._is_in_call = True
            undo.callback(setattr, self, "_is_in_call", False)
            return own(pipeline, *args, **kwargs)
