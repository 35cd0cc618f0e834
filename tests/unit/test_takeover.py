"""Forwards are taken over under others' hooks, and given back in whatever order those come."""

import itertools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from diffusers.hooks.hooks import HookRegistry
from diffusers.hooks.hooks import ModelHook as DiffusersHook
from torch import nn

from ditplan.runtime.takeover import has_other_forward, inner_forward, replace_forward, take_class


class Adding(nn.Module):
    """Adds one."""

    def forward(self, x: int) -> int:
        """One more."""
        return x + 1


class AddingTen(Adding):
    """Adds ten."""

    def forward(self, x: int) -> int:
        """Ten more."""
        return x + 10


class Noting(ModelHook):  # type: ignore[misc]
    """A hook of accelerate that doubles what it is given."""

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Doubles it."""
        return (args[0] * 2,), kwargs


class Tripling(DiffusersHook):
    """A hook of diffusers that triples what comes out."""

    def post_forward(self, module: nn.Module, output: int) -> int:
        """Three times as much."""
        return output * 3


class OwnTripling(DiffusersHook):
    """The same, with a forward of its own."""

    fn_ref: Any

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Three times as much."""
        return self.fn_ref.original_forward(*args, **kwargs) * 3


def registry(module: nn.Module) -> HookRegistry:
    """Its hooks of diffusers."""
    return HookRegistry.check_if_exists_or_initialize(module)


def hook_with(module: nn.Module, hook: Callable[[], DiffusersHook]) -> None:
    """Puts a hook of diffusers on it."""
    registry(module).register_hook(hook(), "tripling")


Act = Callable[[nn.Module], Any]
HOOKS: dict[str, tuple[Act, Act, Callable[[int], int], Callable[[int], int]]] = {
    "accelerate": (
        lambda m: add_hook_to_module(m, Noting()),
        remove_hook_from_module,
        lambda x: x * 2,
        lambda y: y,
    ),
    "diffusers": (
        lambda m: hook_with(m, Tripling),
        lambda m: registry(m).remove_hook("tripling"),
        lambda x: x,
        lambda y: y * 3,
    ),
    "diffusers' own forward": (
        lambda m: hook_with(m, OwnTripling),
        lambda m: registry(m).remove_hook("tripling"),
        lambda x: x,
        lambda y: y * 3,
    ),
}


def take_forward(module: nn.Module, undo: ExitStack) -> None:
    """Two layers: minus, and a hundred times."""
    for change in (lambda y: -y, lambda y: 100 * y):
        inner = inner_forward(module)
        replace_forward(module, lambda x, inner=inner, change=change: change(inner(x)), undo)


def take_by_class(module: nn.Module, undo: ExitStack) -> None:
    """Another class."""
    take_class(module, AddingTen, "it", undo)


TAKEN: dict[str, tuple[Callable[[nn.Module, ExitStack], None], Callable[[int], int]]] = {
    "forward": (take_forward, lambda x: -100 * (x + 1)),
    "class": (take_by_class, lambda x: x + 10),
}
ORDERS = [
    order
    for order in itertools.permutations(("hook", "unhook", "take", "give back"))
    if order.index("hook") < order.index("unhook")
    and order.index("take") < order.index("give back")
]


@pytest.mark.parametrize("order", ORDERS, ids=", ".join)
@pytest.mark.parametrize("hooks", HOOKS)
@pytest.mark.parametrize("how", TAKEN)
def test_hooks_and_plans_come_and_go_in_every_order(
    how: str, hooks: str, order: tuple[str, ...]
) -> None:
    module, undo = Adding(), ExitStack()
    hook, unhook, before, after = HOOKS[hooks]
    take, taken = TAKEN[how]
    hooked = in_force = False
    for step in order:
        if step == "hook":
            hook(module)
            hooked = True
        elif step == "unhook":
            unhook(module)
            hooked = False
        elif step == "take":
            take(module, undo)
            in_force = True
        else:
            undo.close()
            in_force = False
        inner = taken if in_force else lambda x: x + 1
        for x in (1, 7):
            assert module(x) == (after(inner(before(x))) if hooked else inner(x)), step
    assert type(module) is Adding
    assert "ditplan" not in type(vars(module).get("forward")).__module__


def test_what_a_user_put_around_a_taken_forward_stays() -> None:
    module, undo = Adding(), ExitStack()
    take_forward(module, undo)
    taken = module.forward
    module.forward = lambda x: taken(x) + 5  # type: ignore[method-assign]
    assert module(1) == -200 + 5
    undo.close()
    assert module(1) == 2 + 5


def test_a_users_own_forward_is_taken_over_and_given_back() -> None:
    module = Adding()
    module.forward = lambda x: x + 3  # type: ignore[method-assign]
    assert has_other_forward(module)
    with ExitStack() as undo:
        take_forward(module, undo)
        assert has_other_forward(module)
        assert module(1) == -400
    assert module(1) == 4
    assert not has_other_forward(Adding())
