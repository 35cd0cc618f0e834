"""Every tensor, list and number of a call is one of which the family says what ranks get.

What a family doesn't name would be handed on whole, to ranks that have a share of the samples and
of the tokens: a wrong picture without a word. All ranks see the same names and shapes, so all
refuse alike and before anything is exchanged.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn

from ditplan.profiles.errors import InputError
from ditplan.profiles.family import ModelFamily
from ditplan.runtime.in_force import PASSING
from ditplan.runtime.takeover import names_arguments, replaced, submodule

REMEDY = "leave it out, or use a plan with one device"


class CallCheck:
    """Looks at what a transformer and its blocks are given, and refuses what isn't named.

    The root's arguments are looked at in every call; those of blocks, which follow from them, once
    for each set of names that the root is given. `ranks` share out a call's samples. `in_patches`
    is true where the picture is computed in patches at different steps.
    """

    def __init__(self, model: nn.Module, family: ModelFamily, ranks: int, in_patches: bool) -> None:
        self._family, self._ranks, self._in_patches = family, ranks, in_patches
        self._model, self._named = model, names_arguments(model)
        self._defaults = defaults_of(model)
        self._names: frozenset[str] = frozenset()
        self._looked_at: set[frozenset[str]] = set()
        self._looking = ExitStack()

    def apply(self, undo: ExitStack) -> None:
        """Has the model's calls looked at; closing `undo` takes that away again."""
        begin = self._model.register_forward_pre_hook(self._begin, with_kwargs=True)
        end = self._model.register_forward_hook(self._end, always_call=True)
        undo.callback(begin.remove)
        undo.callback(end.remove)
        undo.callback(self._looking.close)

    def _begin(self, _module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        arguments = self._named(*args, **kwargs)
        given = dict(given_values(arguments, self._family.named_inputs, self._defaults))
        for name, value in given.items():
            self._require_named(name, value)
            if self._in_patches:
                self._require_apart(name)
        if self._ranks > 1:
            require_samples(self._family, arguments, given, self._ranks)
        self._names = frozenset(given)
        if self._names not in self._looked_at:
            self._look_at_blocks()

    def _end(self, _module: nn.Module, _args: Any, output: Any) -> None:
        self._looking.close()
        # a call that was refused has no output: the next one is looked at again
        if output is not None:
            self._looked_at.add(self._names)

    def _require_named(self, name: str, value: Any) -> None:
        family = self._family
        if name in family.named_inputs or isinstance(value, (bool, float, str)):
            return
        why = family.refused_inputs.get(name.partition(".")[0])
        raise InputError(
            f"{family.transformer_class} is given {name} ({described(value)}), which can't be "
            f"shared out over ranks: {why or f'family {family.name} does not say how'}; {REMEDY}"
        )

    def _require_apart(self, name: str) -> None:
        of_adapter = name.rpartition(".")[2] in ADAPTER_INPUTS
        if "controlnet" in name or (of_adapter and any(self._family.adapters.values())):
            raise InputError(
                f"{name} can't be given with pipefusion: it goes by the whole picture, of which "
                "patches are at different steps; use a plan with pipefusion 1"
            )

    def _look_at_blocks(self) -> None:
        for path in self._family.blocks:
            for name, block in submodule(self._model, path).named_children():
                look = partial(
                    require_named_arguments, self._family, f"{path}.{name}", names_arguments(block)
                )
                vars(look)[PASSING] = True
                hook = block.register_forward_pre_hook(look, with_kwargs=True)
                self._looking.callback(hook.remove)
                if vars(block).get("_compiled_call_impl"):
                    # what its own `compile()` made would trace this: a call without it
                    self._looking.enter_context(replaced(block, "_compiled_call_impl", None))


ADAPTER_INPUTS = ("ip_adapter_image_embeds", "ip_hidden_states")
"""Items of the attentions' arguments that adapters add keys by."""


UNREAD = object()


def require_named_arguments(
    family: ModelFamily,
    path: str,
    named: Callable[..., dict[str, Any]],
    block: nn.Module,
    args: Any,
    kwargs: dict[str, Any],
) -> None:
    """Refuses an argument of a block that the family doesn't name.

    Raises:
        InputError: says which.
    """
    known = family.named_arguments
    for name, value in given_values(named(*args, **kwargs), known, defaults_of(block)):
        if name not in known and not isinstance(value, (bool, float, str)):
            raise InputError(
                f"{name} of {path} ({described(value)}) may count or run along tokens, of which "
                f"ranks have shares: family {family.name} does not say how; use a plan with one "
                "device"
            )


def defaults_of(module: nn.Module) -> dict[str, Any]:
    """What the arguments of a module's forward are where they aren't given, by name.

    `UNREAD` those that it collects beyond its own, as HunyuanVideo's blocks do.
    """
    parameters = inspect.signature(type(module).forward).parameters
    collected = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {
        name: UNREAD if parameter.kind in collected else parameter.default
        for name, parameter in parameters.items()
    }


def given_values(
    arguments: Mapping[str, Any], names: frozenset[str], defaults: Mapping[str, Any]
) -> Iterator[tuple[str, Any]]:
    """Arguments that a call gives, dicts that aren't among `names` item by item (`a.b`)."""
    for name, value in arguments.items():
        if value is None or is_default(value, defaults.get(name)):
            continue
        if isinstance(value, dict) and name not in names:
            items = {f"{name}.{key}": item for key, item in value.items()}
            yield from given_values(items, names, {})
        else:
            yield name, value


def is_default(value: Any, default: Any) -> bool:
    """Whether a number or a word is what the argument is anyway, or nobody reads it."""
    return default is UNREAD or (isinstance(value, (bool, int, float, str)) and value == default)


def described(value: Any) -> str:
    """What a value is, in a few words."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of {' x '.join(map(str, value.shape)) or 'one number'}"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)}"
    return str(value) if isinstance(value, int) else type(value).__name__


def require_samples(
    family: ModelFamily, arguments: Mapping[str, Any], given: Mapping[str, Any], ranks: int
) -> None:
    """Refuses a batched input that can't be shared out with the call's samples.

    One that has a single sample for all is right as it is, but for items of dicts: what reads
    them may take their first dim for the batch's.

    Raises:
        InputError: says which, and how many samples it has.
    """
    samples = len(arguments[family.batched_inputs[0]])
    if samples < ranks:
        # each rank then runs the call whole
        return
    for name in family.batched_inputs:
        if name not in given:
            continue
        by_sample = name in family.inputs_by_sample
        sizes = {len(given[name])} if by_sample else set(batches_of(given[name]))
        wrong = sizes - {samples} - (set() if "." in name else {1})
        if wrong:
            raise InputError(
                f"{name} has {min(wrong)} samples where the call has {samples}, so they can't be "
                f"shared out over {ranks} ranks of dp x cfg; give it {samples}, or use a plan with "
                "dp 1 and cfg 1"
            )


def batches_of(value: Any) -> Iterator[int]:
    """The first dims of all tensors in a value."""
    if isinstance(value, torch.Tensor):
        if value.ndim:
            yield value.shape[0]
    elif isinstance(value, dict):
        for item in value.values():
            yield from batches_of(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from batches_of(item)
