"""Taking a module's forward, or any object's attribute, over for a while."""

import inspect
import types
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ditplan.profiles.errors import InputError


def names_arguments(module: nn.Module) -> Callable[..., dict[str, Any]]:
    """A function that gives a call's arguments by the names in the module's own forward."""
    names = tuple(inspect.signature(type(module).forward).parameters)[1:]
    return lambda *args, **kwargs: dict(zip(names, args, strict=False)) | kwargs


SLOT = "_ditplan_forward"


class ForwardSlot:
    """Stands in for a module's own forward, under whatever others have put around it.

    Hooks of accelerate and of diffusers keep the forward that they found and bring it back when
    they go: they keep and bring back this. Without layers it is the module's own forward, so it
    does no harm where it can't be taken out.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module, self._layers = module, list[Callable[..., Any]]()
        place = _innermost(module)
        self.replaced: Any = place.get() if place else vars(module).get("forward")
        """A forward that somebody else gave the module in place of its class's; None for none."""
        if place or _is_own(self.replaced, module):
            self.replaced = None
        (place or _Place(vars(module), "forward")).set(self)
        vars(module)[SLOT] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the last layer gives."""
        return self.top(*args, **kwargs)

    @property
    def top(self) -> Callable[..., Any]:
        """The last layer, or what is there without any."""
        return self._layers[-1] if self._layers else self.replaced or own_forward(self._module)

    @property
    def is_reached(self) -> bool:
        """Whether a call of the module comes here, as far as its attributes tell."""
        return any(place.get() is self for place in _places(self._module))

    def put(self, layer: Callable[..., Any], undo: ExitStack) -> None:
        """Has `layer` run; closing `undo` takes it away, and the slot with the last of them."""
        self._layers.append(layer)
        undo.callback(self._take, layer)

    def _take(self, layer: Callable[..., Any]) -> None:
        self._layers.remove(layer)
        if self._layers:
            return
        if vars(self._module).get(SLOT) is self:
            del vars(self._module)[SLOT]
        for place in _places(self._module):
            if place.get() is not self:
                continue
            if self.replaced is None and place.is_outermost:
                place.remove()
            else:
                place.set(self.replaced or own_forward(self._module))


@dataclass(frozen=True)
class _Place:
    """An attribute that holds a module's forward, or one under a hook."""

    owner: dict[str, Any]
    name: str

    @property
    def is_outermost(self) -> bool:
        """Whether it is the module's own `forward`."""
        return self.name == "forward" and "_parameters" in self.owner

    def get(self) -> Any:
        """What is there, None for nothing."""
        return self.owner.get(self.name)

    def set(self, forward: Any) -> None:
        """Puts a forward there."""
        self.owner[self.name] = forward

    def remove(self) -> None:
        """Leaves nothing there."""
        del self.owner[self.name]


def own_forward(module: nn.Module) -> Callable[..., Any]:
    """The forward of a module's class."""
    return types.MethodType(type(module).forward, module)


def _is_own(forward: Any, module: nn.Module) -> bool:
    return inspect.ismethod(forward) and forward.__self__ is module


def _places(module: nn.Module) -> list[_Place]:
    """Where a module and the hooks of accelerate and diffusers on it keep forwards."""
    own = vars(module)
    places = [_Place(own, "forward"), _Place(own, "_old_forward")]
    for reference in getattr(own.get("_diffusers_hook"), "_fn_refs", ()):
        places += [_Place(vars(reference), "original_forward"), _Place(vars(reference), "forward")]
    return [place for place in places if place.get() is not None]


def _innermost(module: nn.Module) -> _Place | None:
    """The place of the class's forward, where it has one."""
    return next((place for place in _places(module) if _is_own(place.get(), module)), None)


def slot_of(module: nn.Module) -> ForwardSlot | None:
    """The slot of a module whose forward is taken over."""
    found: ForwardSlot | None = vars(module).get(SLOT)
    return found


def inner_forward(module: nn.Module) -> Callable[..., Any]:
    """What `replace_forward` replaces: a module's forward without others' hooks around it."""
    if slot := slot_of(module):
        return slot.top
    if "forward" not in vars(module) or _innermost(module):
        return own_forward(module)
    found: Callable[..., Any] = module.forward
    return found


def has_other_forward(module: nn.Module) -> bool:
    """Whether somebody has given a module a forward in place of its class's."""
    if slot := slot_of(module):
        return slot.replaced is not None
    return "forward" in vars(module) and _innermost(module) is None


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
    """Gives one module another forward, under the hooks that others have on it, now or later.

    Closing `undo` takes it away, in whatever order they come and go.
    """
    (slot_of(module) or ForwardSlot(module)).put(forward, undo)


def leave_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Takes a forward away that was set on a module over its class's, wherever hooks that have come
    since then keep it.
    """
    for place in _places(module):
        if place.get() is not forward:
            continue
        if place.is_outermost:
            place.remove()
        else:
            place.set(own_forward(module))


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
        place = _innermost(module)
        if place is None:
            raise InputError(
                f"the forward of {name} has been replaced, so a plan can't take it over; put the "
                "plan in force before that, or leave it out"
            )
        place.set(types.MethodType(taken.forward, module))
    before = type(module)
    for attribute, value in attributes.items():
        undo.callback(delattr, module, attribute)
        setattr(module, attribute, value)
    module.__class__ = taken
    undo.callback(_give_back_class, module, taken, before)


def _give_back_class(module: nn.Module, taken: type[Any], before: type[Any]) -> None:
    """Has a module's class be what it was, unless another one has come on top meanwhile."""
    if type(module) is taken:
        module.__class__ = before
    for place in _places(module):
        if _is_own(place.get(), module):
            place.set(own_forward(module))


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
    missing = object()
    before = vars(owner).get(name, missing)
    vars(owner)[name] = value
    try:
        yield
    finally:
        if vars(owner).get(name) is not value:
            # what has come on top meanwhile is not this one's to take away
            pass
        elif before is missing:
            del vars(owner)[name]
        else:
            vars(owner)[name] = before


class CurrentCall:
    """Which of a step's calls a pipeline of diffusers is making: the name that it gives to the
    transformer's `cache_context`, None outside of one.
    """

    def __init__(self) -> None:
        self.name: str | None = None

    def follow(self, model: nn.Module, undo: ExitStack) -> bool:
        """Takes over a transformer's `cache_context`; closing `undo` takes that away again.

        False where it has none, so that the calls have no names.
        """
        own: Any = getattr(model, "cache_context", None)
        if own is None:
            return False
        undo.enter_context(replaced(model, "cache_context", partial(self._entered, own)))
        return True

    @contextmanager
    def _entered(self, own: Callable[..., Any], name: str, **kwargs: Any) -> Iterator[None]:
        self.name = name
        try:
            with own(name, **kwargs):
                yield
        finally:
            self.name = None


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
