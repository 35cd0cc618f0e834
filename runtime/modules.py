"""Taking a module's forward, or any object's attribute, over for a while."""

import inspect
from collections.abc import Callable, Iterator, Mapping
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


def change_arguments(
    module: nn.Module, changes: Mapping[str, Callable[[Any], Any]], undo: ExitStack
) -> None:
    """Has each call of a module get changed arguments, by name; closing `undo` takes that away."""
    named = names_arguments(module)

    def change(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        given = named(*args, **kwargs)
        changed = {name: one(given[name]) for name, one in changes.items() if name in given}
        return (), given | changed

    undo.callback(module.register_forward_pre_hook(change, with_kwargs=True).remove)


def sample_of(output: Any) -> Any:
    """The prediction in what a transformer of diffusers returns."""
    return output[0] if isinstance(output, tuple) else output.sample


def as_output(inputs: dict[str, Any], prediction: Any) -> Any:
    """A prediction as a transformer of diffusers called with `inputs` returns it."""
    if inputs.get("return_dict", True):
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        return Transformer2DModelOutput(sample=prediction)
    return (prediction,)


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
