"""Regional compilation: the blocks of a transformer, one compile for each kind of block."""

import types
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch._dynamo.exc
from torch import nn

from ditplan.profiles.errors import InputError, PlanWarning
from ditplan.profiles.family import ModelFamily
from ditplan.runtime.blocks import block_runs
from ditplan.runtime.compilation.fusions import FusingBackend
from ditplan.runtime.compilation.operators import AttentionOperator
from ditplan.runtime.compilation.products import pack
from ditplan.runtime.takeover import replace_forward, submodule

# torch has no common class of what compiling can raise: dynamo's, inductor's, and plain ones
COMPILE_ERRORS = (torch._dynamo.exc.TorchDynamoException, NotImplementedError)


@dataclass
class Kind:
    """A kind of block: its compiled code, or why there is none, and how its weights should lie."""

    run: Callable[..., Any]
    backend: FusingBackend
    packed: int = 0
    failed: bool = False


class CompiledBlocks:
    """The compiled code of a plan's blocks by kind; kept while a process goes from plan to plan.

    `attentions` are those that the blocks call. With `dynamic` one compile serves all shapes, at
    some cost in speed. Weights that are not `movable` stay where they lie.
    """

    def __init__(
        self,
        attentions: Sequence[AttentionOperator] = (),
        dynamic: bool = False,
        movable: bool = True,
    ) -> None:
        self._attentions = attentions
        self._dynamic, self._movable = dynamic, movable
        self._kinds: dict[str, Kind] = {}

    def apply(
        self, model: nn.Module, family: ModelFamily, may_fall_back: bool, undo: ExitStack
    ) -> None:
        """Has the model's blocks run compiled; closing `undo` takes that away again.

        A kind of block that can't be compiled runs eagerly, with a warning.

        Raises (when a block is called):
            InputError: it can't be compiled and must not fall back.
        """
        alike: defaultdict[str, list[nn.Module]] = defaultdict(list)
        for name, paths in block_runs(model, family):
            alike[name] += [submodule(model, path) for path in paths]
        for name, blocks in alike.items():
            if name not in self._kinds:
                self._kinds[name] = self._kind_of(blocks[0])
            kind = self._kinds[name]
            movable = blocks if self._movable else []
            _pack(kind, movable)
            for block in blocks:
                forward = partial(_run, name, kind, movable, block, block.forward, may_fall_back)
                replace_forward(block, forward, undo)

    def _kind_of(self, block: nn.Module) -> Kind:
        """Compiled code that takes the block as its first argument, for all of a kind to share."""
        original = type(block).forward
        # a code object of this plan's own: torch.compile counts and keeps by code object, so other
        # plans' shapes neither use up its limit nor are they looked through
        own = types.FunctionType(
            original.__code__.replace(),
            original.__globals__,
            original.__name__,
            original.__defaults__,
            original.__closure__,
        )
        own.__kwdefaults__ = original.__kwdefaults__
        backend = FusingBackend(self._attentions)
        compiled = torch.compile(own, dynamic=self._dynamic, fullgraph=True, backend=backend)
        return Kind(compiled, backend)


def _run(
    name: str,
    kind: Kind,
    movable: list[nn.Module],
    block: nn.Module,
    plain: Callable[..., Any],
    may_fall_back: bool,
    *args: Any,
    **kwargs: Any,
) -> Any:
    if kind.failed:
        return plain(*args, **kwargs)
    try:
        result = kind.run(block, *args, **kwargs)
    except COMPILE_ERRORS as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        if not may_fall_back:
            raise InputError(
                f"blocks of kind {name} can't be compiled ({reason}); use a plan with mode "
                "eager or graph"
            ) from error
        warnings.warn(
            f"blocks of kind {name} run eagerly, they can't be compiled: {reason}",
            PlanWarning,
            stacklevel=2,
        )
        kind.failed = True
        return plain(*args, **kwargs)
    if len(kind.backend.packed) > kind.packed:
        _pack(kind, movable)
    return result


def _pack(kind: Kind, blocks: list[nn.Module]) -> None:
    """Brings weights together as the compiled code of this kind of block wants them."""
    for paths in kind.backend.packed:
        for block in blocks:
            pack([block.get_parameter(path) for path in paths])
    kind.packed = len(kind.backend.packed)
