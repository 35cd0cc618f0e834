"""Taking a module's forward, or any object's attribute, over for a while."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn


def names_arguments(module: nn.Module) -> Callable[..., dict[str, Any]]:
    """A function that gives a call's arguments by the names in the module's own forward."""
    names = tuple(inspect.signature(type(module).forward).parameters)[1:]
    return lambda *args, **kwargs: dict(zip(names, args, strict=False)) | kwargs


def replace_forward(module: nn.Module, forward: Callable[..., Any], undo: ExitStack) -> None:
    """Gives one module another forward; closing `undo` brings back what was there before."""
    if "forward" in vars(module):
        undo.callback(setattr, module, "forward", module.forward)
    else:
        undo.callback(delattr, module, "forward")
    module.forward = forward


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Sets an attribute of the instance for a while."""
    before = vars(owner).get(name)
    vars(owner)[name] = value
    try:
        yield
    finally:
        if before is None:
            del vars(owner)[name]
        else:
            vars(owner)[name] = before
