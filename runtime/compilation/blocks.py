"""Regional compilation: the blocks of a transformer, one compile for each kind of block."""

import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from ditplan.profiles.errors import InputError, PlanWarning
from ditplan.profiles.family import ModelFamily
from ditplan.runtime.blocks import block_runs
from ditplan.runtime.compilation.built import Built
from ditplan.runtime.compilation.compiled_forward import (
    COMPILE_ERRORS,
    MOST_SHAPES,
    CompiledForward,
)
from ditplan.runtime.compilation.fusions import FusingBackend
from ditplan.runtime.compilation.operators import AttentionOperator
from ditplan.runtime.compilation.products import pack
from ditplan.runtime.takeover import has_other_forward, inner_forward, replace_forward, submodule


@dataclass
class Kind:
    """A kind of block: its compiled code, or why there is none, and how its weights should lie.

    `inside` is what torch.compile read in its blocks and doesn't look at again.
    """

    run: CompiledForward
    backend: FusingBackend
    inside: list[Any]
    packed: int = 0
    failed: bool = False


class CompiledBlocks:
    """The compiled code of a plan's blocks by kind; kept while a process goes from plan to plan.

    `attentions` are those that the blocks call. With `dynamic` one compile serves all shapes, at
    some cost in speed. Weights that are not `movable` stay where they lie. `built` counts what is
    compiled, and says how many shapes have code of their own.
    """

    def __init__(
        self,
        attentions: Sequence[AttentionOperator] = (),
        dynamic: bool = False,
        movable: bool = True,
        built: Built | None = None,
    ) -> None:
        self._attentions, self._built = attentions, built or Built()
        self._dynamic, self._movable = dynamic, movable
        self._kinds: dict[str, Kind] = {}

    def apply(
        self, model: nn.Module, family: ModelFamily, may_fall_back: bool, undo: ExitStack
    ) -> None:
        """Has the model's blocks run compiled; closing `undo` takes that away again.

        A kind of block that can't be compiled runs eagerly, with a warning; so does a block that
        has been given a forward of its own.

        Raises (also when a block is called):
            InputError: it can't be compiled and must not fall back.
        """
        alike: defaultdict[str, list[nn.Module]] = defaultdict(list)
        for name, paths in block_runs(model, family):
            alike[name] += [submodule(model, path) for path in paths]
        for name, blocks in alike.items():
            kind = self._kind_of(name, blocks)
            movable = blocks if self._movable else []
            self._pack(kind, movable)
            for block in blocks:
                if has_other_forward(block):
                    _fall_back(name, "the forward of one has been replaced", may_fall_back)
                    continue
                plain = inner_forward(block)
                forward = partial(self._run, name, kind, movable, block, plain, may_fall_back)
                replace_forward(block, forward, undo)

    def _kind_of(self, name: str, blocks: Sequence[nn.Module]) -> Kind:
        """The compiled code that all blocks of a kind share; anew where it would be wrong."""
        inside = _inside(blocks)
        kind = self._kinds.get(name)
        if kind is None or kind.failed or kind.inside != inside:
            backend = FusingBackend(self._attentions, self._built)
            most = 0 if self._dynamic else MOST_SHAPES
            run = CompiledForward(type(blocks[0]).forward, backend, most, self._built)
            kind = Kind(run, backend, inside)
            self._kinds[name] = kind
        return kind

    def _run(
        self,
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
            try:
                _fall_back(name, reason, may_fall_back)
            except InputError as refusal:
                raise refusal from error
            kind.failed = True
            return plain(*args, **kwargs)
        if len(kind.backend.packed) > kind.packed:
            self._pack(kind, movable)
        return result

    def _pack(self, kind: Kind, blocks: list[nn.Module]) -> None:
        """Brings weights together as the compiled code of this kind of block wants them, where a
        block has all of them: adapters come and go.
        """
        for block in blocks:
            parameters = dict(block.named_parameters()) if kind.backend.packed else {}
            for paths in kind.backend.packed:
                found = [parameters.get(path) for path in paths]
                weights = [one for one in found if type(one) is nn.Parameter and not one.is_meta]
                fitting = len(weights) == len(paths) and len({one.dtype for one in weights}) == 1
                if fitting and pack(weights):
                    self._built.note_moved(weights)
        kind.packed = len(kind.backend.packed)


def _inside(blocks: Sequence[nn.Module]) -> list[Any]:
    """The hooks and forwards of modules in blocks: torch.compile takes them as they are when it
    compiles (`skip_nnmodule_hook_guards`), and traces no block's own.
    """
    found: list[Any] = [type(blocks[0]).forward]
    for block in blocks:
        for module in list(block.modules())[1:]:
            hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
            found.append((type(module).forward, vars(module).get("forward"), hooks))
    return found


def _fall_back(name: str, reason: str, may_fall_back: bool) -> None:
    """Says that blocks run eagerly.

    Raises:
        InputError: they must not.
    """
    if not may_fall_back:
        raise InputError(
            f"blocks of kind {name} can't be compiled ({reason}); use a plan with mode eager or "
            "graph"
        )
    warnings.warn(
        f"blocks of kind {name} run eagerly, they can't be compiled: {reason}",
        PlanWarning,
        stacklevel=3,
    )
