"""Taking a module's forward, or any object's attribute, over for a while."""

import inspect
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ditplan.profiles.errors import InputError


def names_arguments(module: nn.Module) -> Callable[..., dict[str, Any]]:
    """A function that gives a call's arguments by the names in the module's own forward."""
    names = tuple(inspect.signature(type(module).forward).parameters)[1:]
    return lambda *args, **kwargs: dict(zip(names, args, strict=False)) | kwargs


def call_arguments_of(
    call: Callable[..., Any], owner: Any, args: Sequence[Any], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The arguments of a method's call by name, those that were given.

    Raises:
        TypeError: they don't fit the method.
    """
    signature = inspect.signature(call)
    given = dict(signature.bind(owner, *args, **kwargs).arguments)
    del given[next(iter(given))]
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            given |= given.pop(name, {})
    return given


def take_calls(owner: Any, run: Callable[..., Any], undo: ExitStack) -> None:
    """Has `run(owner, own, args, kwargs)` make the calls of an object, `own` being the method that
    makes them otherwise; closing `undo` takes that away again.
    """
    original = type(owner)

    class Taken(original):  # type: ignore[misc, valid-type]
        @wraps(original.__call__)
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return run(self, original.__call__, args, kwargs)

    Taken.__name__, Taken.__qualname__ = original.__name__, original.__qualname__
    undo.callback(setattr, owner, "__class__", original)
    owner.__class__ = Taken


def replace_forward(module: nn.Module, forward: Callable[..., Any], undo: ExitStack) -> None:
    """Gives one module another forward; closing `undo` brings back what was there before."""
    if "forward" in vars(module):
        undo.callback(setattr, module, "forward", module.forward)
    else:
        undo.callback(delattr, module, "forward")
    module.forward = forward


def signature_of(arguments: Any) -> Hashable:
    """What calls have in common that differ in the numbers in their tensors alone."""
    leaves, structure = pytree.tree_flatten(arguments)
    return structure, tuple(map(signature_of_leaf, leaves))


def signature_of_leaf(leaf: Any) -> Hashable:
    """Of a tensor what it looks like, of all else its value."""
    if isinstance(leaf, torch.Tensor):
        return (leaf.shape, leaf.stride(), leaf.dtype, leaf.device)
    return (type(leaf), leaf)


def carried_by(names: Sequence[str], given: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    """Those of a block's arguments that it returns for the next: blocks over one sequence take one
    of the `names`, those over two take both.
    """
    return tuple(given[name] for name in names if given.get(name) is not None)


def handed_on(carried: tuple[torch.Tensor, ...]) -> Any:
    """What a block returns that leaves everything as it is."""
    return carried if len(carried) > 1 else carried[0]


def change_arguments(
    module: nn.Module, change: Callable[[dict[str, Any]], dict[str, Any]], undo: ExitStack
) -> None:
    """Has `change` make a call's arguments, by name, others; closing `undo` takes that away."""
    named = names_arguments(module)

    def changed(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return (), change(named(*args, **kwargs))

    undo.callback(module.register_forward_pre_hook(changed, with_kwargs=True).remove)


def take_class(
    module: nn.Module, taken: type[Any], name: str, undo: ExitStack, **attributes: Any
) -> None:
    """Gives a module another class and attributes; closing `undo` takes that away again.

    Not a forward of its own: so torch.compile sees the same code in all blocks of a kind and
    compiles it once.

    Raises:
        InputError: the module has a forward of its own, which would go around its class.
    """
    if "forward" in vars(module):
        raise InputError(
            f"the forward of {name} has been replaced (by offloading hooks, for instance), so a "
            "plan can't take it over; put the plan in force before that, or leave it out"
        )
    undo.callback(setattr, module, "__class__", type(module))
    for attribute, value in attributes.items():
        undo.callback(delattr, module, attribute)
        setattr(module, attribute, value)
    module.__class__ = taken


def traceable(func: Callable[..., Any]) -> Callable[..., Any]:
    """What torch.compile can trace under a function mode: `Tensor.unflatten` calls super()."""
    return torch.unflatten if func is torch.Tensor.unflatten else func


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


def matching_modules(model: nn.Module, pattern: str) -> list[tuple[str, nn.Module]]:
    """The submodules whose path matches a pattern in which `*` stands for one path element."""
    wanted = pattern.split(".")
    found = []
    for name, module in model.named_modules():
        parts = name.split(".")
        if len(parts) == len(wanted) and all(
            w in ("*", p) for w, p in zip(wanted, parts, strict=True)
        ):
            found.append((name, module))
    return found


def submodule(model: nn.Module, name: str) -> nn.Module:
    """A submodule by its path, in which -1 stands for the last of a list.

    Raises:
        InputError: there is none.
    """
    module = model
    try:
        for part in name.split("."):
            module = list(module.children())[-1] if part == "-1" else module.get_submodule(part)
        return module
    except (AttributeError, IndexError):
        raise InputError(
            f"{type(model).__name__} has no module {name}; its family doesn't describe this "
            "version of the class"
        ) from None
