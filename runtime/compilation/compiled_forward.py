"""A compiled forward that takes any number of shapes without end of compiling or of memory."""

import types
from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo.exc

from ditplan.runtime.compilation.built import Built

# torch has no common class of what compiling can raise: dynamo's, inductor's, and plain ones
COMPILE_ERRORS = (torch._dynamo.exc.TorchDynamoException, NotImplementedError)

MOST_SHAPES = 6
"""The whole sequence and two sizes of patches, for the two calls a step of some pipelines."""

Code = Callable[..., Any]


class CompiledForward:
    """The forward of a class of modules, compiled: for each of the first shapes, then for all.

    torch.compile keeps what it makes by code object and gives up when one has eight variants. Here
    each of the first shapes has a code object of its own, and all others share one whose sizes are
    symbols: then a new shape compiles nothing. One that has all its variants used up, by adapters
    and their scales, is made anew. Where sizes can't be symbols the shape longest unused goes.
    """

    def __init__(
        self,
        forward: Code,
        backend: Callable[..., Any],
        most: int = MOST_SHAPES,
        built: Built | None = None,
    ) -> None:
        """`most` shapes have code of their own, or as many as `built` says if that are more."""
        self._forward, self._backend = forward, backend
        self._at_least, self._built = most, built or Built()
        self._by_shape: dict[tuple[torch.Size | None, ...], Code] = {}
        self._for_all: Code | None = None
        self._needs_shapes = False

    def __call__(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        """What the module's own forward gives.

        Raises:
            COMPILE_ERRORS: it can't be compiled.
        """
        shapes = tuple(
            one.shape if isinstance(one, torch.Tensor) else None
            for one in (*args, *kwargs.values())
        )
        if shapes not in self._by_shape and self._is_for_all():
            try:
                return self._call_for_all(module, *args, **kwargs)
            except COMPILE_ERRORS:
                if not self._most:
                    raise
                self._for_all, self._needs_shapes = None, True
        code = self._by_shape.pop(shapes, None) or self._new_for_a_shape()
        self._by_shape[shapes] = code
        try:
            return code(module, *args, **kwargs)
        except torch._dynamo.exc.FailOnRecompileLimitHit:
            code = self._by_shape[shapes] = self._compiled(dynamic=False)
            return code(module, *args, **kwargs)

    @property
    def _most(self) -> int:
        return max(self._at_least, self._built.shapes) if self._at_least else 0

    def _is_for_all(self) -> bool:
        return len(self._by_shape) >= self._most and not self._needs_shapes

    def _call_for_all(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        if self._for_all is None:
            self._for_all = self._compiled(dynamic=True)
        try:
            return self._for_all(module, *args, **kwargs)
        except torch._dynamo.exc.FailOnRecompileLimitHit:
            self._for_all = self._compiled(dynamic=True)
            return self._for_all(module, *args, **kwargs)

    def _new_for_a_shape(self) -> Code:
        while len(self._by_shape) >= self._most:
            del self._by_shape[next(iter(self._by_shape))]
        return self._compiled(dynamic=False)

    def _compiled(self, dynamic: bool) -> Code:
        """Code of its own, which takes the module as its first argument."""
        original: Any = self._forward
        own = types.FunctionType(
            original.__code__.replace(),
            original.__globals__,
            original.__name__,
            original.__defaults__,
            original.__closure__,
        )
        own.__kwdefaults__ = original.__kwdefaults__
        compiled: Code = torch.compile(own, dynamic=dynamic, fullgraph=True, backend=self._backend)
        return compiled
