"""A plan in force, while others change the modules under it.

Adapters are loaded and fused, offloading and caches are switched on, processors and whole modules
are exchanged. What a plan relies on is noted when it is put in force and compared before each call
of a transformer; where it differs the plan is taken off and put in force anew, with all its checks.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import wraps
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import nn

from ditplan.profiles.errors import InputError, PlanWarning
from ditplan.runtime.takeover import replaced, slot_of
from ditplan.runtime.weights.pieces import PieceParameter

STANDARD = frozenset(vars(nn.Module()))
"""Attributes that every module has."""

PLAIN = (nn.Parameter, torch.Tensor)


PASSING = "is_passing"
"""Attribute of hooks that a plan puts on for some calls only."""


def _stays(hook: tuple[int, Any]) -> bool:
    return PASSING not in getattr(hook[1], "__dict__", ())


class ModuleState:
    """What a plan relies on of a model's modules, in a form that is quickly compared.

    Which modules there are, of which classes, with which forwards and hooks; and with `of_graphs`
    what a captured graph holds besides: where weights lie, and the values that attentions, their
    processors and adapters keep.
    """

    def __init__(self, model: nn.Module, of_graphs: bool) -> None:
        self._model, self._modules = model, list(model.modules())
        self._children = [module._modules.values() for module in self._modules]
        # not the whole model's class, which a plan changes, nor its forward: offloading takes its
        # hook off and puts it on again in each call
        self._below = self._modules[1:]
        self._dicts = [vars(module) for module in self._below]
        self._classes = set(map(type, self._below))
        self._slotted = [module for module in self._below if slot_of(module)]
        self._hooks: list[Mapping[Any, Any]] = []
        for module in self._modules:
            self._hooks += (module._forward_hooks, module._forward_pre_hooks)
        self._tensors: list[Iterable[Any]] = []
        self._kept: list[Iterable[Any]] = []
        if of_graphs:
            for module in self._modules:
                self._tensors += (module._parameters.values(), module._buffers.values())
            self._kept = list(_kept_by(self._modules))
        self._same, self._equal = self._objects(), self._features()
        self._places = self._weight_places()

    def has_changed(self) -> bool:
        """Whether anything of it is other than it was."""
        same = self._objects()
        return (
            len(same) != len(self._same)
            or not all(map(is_, same, self._same))
            or self._features() != self._equal
            or self._weight_places() != self._places
        )

    def note_moved(self, weights: Sequence[nn.Parameter]) -> None:
        """Takes as unchanged where these lie now."""
        moved = {id(weight): weight.data_ptr() for weight in weights}
        # others may have added some meanwhile, which is a change of its own
        pairs = zip(self._plain_tensors(), self._places, strict=False)
        self._places = [moved.get(id(one), place) for one, place in pairs]

    def _objects(self) -> list[Any]:
        return list(chain.from_iterable(chain(self._children, self._tensors, self._kept)))

    def _features(self) -> tuple[Any, ...]:
        slot = slot_of(self._model)
        return (
            list(map(type, self._below)),
            [getattr(one, "forward", None) for one in (type(self._model), *self._classes)],
            [one.get("forward") for one in self._dicts],
            [tuple(filter(_stays, one.items())) for one in self._hooks],
            slot is None or slot.is_reached,
            [_own_compiled(module) for module in (self._model, *self._slotted)],
            *_neighbours(self._model),
        )

    def _plain_tensors(self) -> Iterator[torch.Tensor]:
        return (one for one in chain.from_iterable(self._tensors) if type(one) in PLAIN)

    def _weight_places(self) -> list[int]:
        return [one.data_ptr() for one in self._plain_tensors()]


def _own_compiled(module: nn.Module) -> Any:
    """What the module's own `compile()` made of its call."""
    return vars(module).get("_compiled_call_impl")


def _set_compiled_aside(model: nn.Module, undo: ExitStack) -> None:
    """Has what a plan runs be called as it is, not through what `compile()` made of it."""
    compiled = [
        module
        for module in model.modules()
        if _own_compiled(module) and (module is model or slot_of(module))
    ]
    for module in compiled:
        if module is not model:
            undo.enter_context(replaced(module, "_compiled_call_impl", None))
    if compiled:
        warnings.warn(
            f"what compile() made of a {type(compiled[0]).__name__} is set aside while the plan is "
            "in force: it can't trace what ranks exchange; plans with mode compile compile blocks",
            PlanWarning,
            stacklevel=2,
        )


def _neighbours(model: nn.Module) -> tuple[bool, ...]:
    """Which of what works on a whole model is switched on beside a plan."""
    return (
        "_hf_hook" in vars(model),
        bool(getattr(model, "is_cache_enabled", False)),
        getattr(model, "_parallel_config", None) is not None,
    )


def held_by_graphs(model: nn.Module) -> list[Any]:
    """What a captured graph of a model holds beside its calls: where weights lie, and the values
    that attentions, their processors and adapters keep.
    """
    tensors = chain(model.parameters(), model.buffers())
    kept = chain.from_iterable(_kept_by(list(model.modules())))
    return [*(one.data_ptr() for one in tensors), *kept]


def _kept_by(modules: Sequence[nn.Module]) -> Iterator[Iterable[Any]]:
    """The values that attentions, their processors and adapters keep, as live views."""
    for module in modules:
        own = vars(module)
        if "processor" not in own and "_active_adapter" not in own:
            continue
        for owner in (own, getattr(own.get("processor"), "__dict__", {})):
            yield owner.values()
            for name, value in owner.items():
                if name in STANDARD:
                    continue
                if isinstance(value, dict):
                    yield value.values()
                elif isinstance(value, list):
                    yield value


class PlanInForce:
    """Keeps a plan in force on a pipeline's transformers until it is closed."""

    def __init__(
        self,
        pipeline: Any,
        models: Mapping[str, nn.Module],
        apply: Callable[[ExitStack], None],
        together: Callable[[], AbstractContextManager[None]],
        *,
        of_graphs: bool,
        across_steps: bool,
    ) -> None:
        """`models` are by their names in the pipeline. `apply` checks them and puts the plan in
        force; what is raised within `together` is raised on all ranks. A plan that works
        `across_steps` can't be put in force anew within a pipeline's call.
        """
        self._together = together
        self._pipeline, self._models, self._apply = pipeline, models, apply
        self._of_graphs, self._across_steps = of_graphs, across_steps
        self._states: list[ModuleState] = []
        self._applied, self._watches = ExitStack(), ExitStack()
        self._calls, self._is_open = 0, True

    def open(self, undo: ExitStack) -> None:
        """Puts the plan in force; closing `undo` takes it away again.

        Raises:
            InputError: a model can't have it.
        """
        with ExitStack() as failed:
            failed.callback(self._close)
            self._put()
            failed.pop_all()
        undo.callback(self._close)

    def _close(self) -> None:
        # others may hold on to a class that still watches
        self._is_open = False
        self._take_off()

    def _put(self) -> None:
        try:
            with ExitStack() as applied:
                self._apply(applied)
                for model in self._models.values():
                    _set_compiled_aside(model, applied)
                self._states = [
                    ModuleState(model, self._of_graphs) for model in self._models.values()
                ]
                self._applied = applied.pop_all()
        finally:
            # also where it can't be put in force any more: then no call runs without it
            for model in self._models.values():
                _watch(model, self._model_call, self._watches)
            if callable(self._pipeline):
                _watch(self._pipeline, self._pipeline_call, self._watches)

    def _take_off(self) -> None:
        self._states = []
        self._watches.close()
        self._applied.close()

    def _renew(self) -> None:
        """Puts the plan in force anew if what it relies on has changed.

        Raises:
            InputError: it can't be, for what has changed or because a call is under way.
        """
        if not self._is_open:
            return
        if self._states and not any(state.has_changed() for state in self._states):
            return
        if self._states and self._calls and self._across_steps:
            raise InputError(
                "the transformer's modules were changed within a call of the pipeline, whose "
                "patches are at different steps with pipefusion; change them between calls, or "
                "use a plan with pipefusion 1"
            )
        self.put_anew()

    def put_anew(self) -> None:
        """Takes the plan away and puts it in force again."""
        self._take_off()
        self._put()

    @contextmanager
    def _model_call(self) -> Iterator[None]:
        with self._together():
            self._renew()
        yield

    @contextmanager
    def _pipeline_call(self) -> Iterator[None]:
        with self._together():
            self._require_models()
            self._renew()
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1

    def note_moved(self, weights: Sequence[nn.Parameter]) -> None:
        """Takes it for no change by others that the plan itself has moved these weights."""
        for state in self._states:
            state.note_moved(weights)

    def _require_models(self) -> None:
        for name, model in self._models.items():
            if self._is_open and getattr(self._pipeline, name, None) is not model:
                raise InputError(
                    f"the pipeline's {name} is another one than when the plan was put in force "
                    "(exchanged, or wrapped by torch.compile); put the old one back, or close the "
                    "plan and put it in force anew"
                )


def _watch(owner: Any, around: Callable[[], AbstractContextManager[None]], undo: ExitStack) -> None:
    """Enters `around` with each call of an object; closing `undo` takes that away again.

    By its class, so that nothing that is set on the object itself goes around it: not the forward
    that hooks bring back, nor the one that `compile()` made.
    """
    original = type(owner)
    is_module = isinstance(owner, nn.Module)

    class Watched(original):  # type: ignore[misc, valid-type]
        @wraps(original.__call__)
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            with around():
                if is_module:
                    return self._call_impl(*args, **kwargs)
                # around() may have put another class on top of others
                return super(type(self), self).__call__(*args, **kwargs)

    if is_module:
        # a compiler that comes from outside stops here: it can't trace what ranks exchange
        setattr(Watched, "__call__", torch.compiler.disable(Watched.__call__))  # noqa: B010
        setattr(Watched, "__reduce_ex__", _refuse_copies)  # noqa: B010
        setattr(Watched, "_apply", _apply_to_whole(original._apply))  # noqa: B010
    Watched.__name__, Watched.__qualname__ = original.__name__, original.__qualname__
    Watched.__module__ = original.__module__
    owner.__class__ = Watched
    undo.callback(_unwatch, owner, Watched)


def _refuse_copies(model: nn.Module, _protocol: int) -> Any:
    raise InputError(
        f"a {type(model).__name__} can't be copied or pickled while a plan is in force on it; "
        "close the plan before"
    )


def _apply_to_whole(own: Callable[..., Any]) -> Callable[..., Any]:
    """A module's `_apply`, by which it is moved and cast; at once refused where that could only be
    done to half of it, as its weights are in pieces.
    """

    def apply(model: nn.Module, change: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        for parameter in model.parameters():
            if isinstance(parameter, PieceParameter):
                change(parameter)
        return own(model, change, *args, **kwargs)

    return apply


def _unwatch(owner: Any, watched: type[Any]) -> None:
    """Gives an object its class back, with a forward that somebody gave the class meanwhile."""
    if type(owner) is watched:
        owner.__class__ = watched.__mro__[1]
    if "forward" in vars(watched):
        watched.__mro__[1].forward = watched.forward  # type: ignore[attr-defined]
