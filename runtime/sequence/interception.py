"""Answering functions of torch that a module calls somewhere inside its forward."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch.overrides import TorchFunctionMode

from ditplan.profiles.errors import InputError
from ditplan.runtime.takeover import traceable


class Interceptor(TorchFunctionMode):
    """While entered, calls of `functions` are answered by `answer`; counts them."""

    functions: ClassVar[tuple[Callable[..., Any], ...]]
    expected: ClassVar[int]
    """How many calls a forward makes that isn't gone around."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        # not what it has: torch.compile would compile each block anew for its own name
        self._module = module
        self.calls = 0

    def answer(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """What a call gives in place of what `func` would."""
        raise NotImplementedError

    def counts_right(self) -> bool:
        """Whether a forward that has ended made the calls that it should."""
        return self.calls == self.expected

    def gone_around(self) -> str:
        """What to say of a forward that made another number of calls than expected."""
        raise NotImplementedError

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func not in self.functions:
            return traceable(func)(*args, **(kwargs or {}))
        self.calls += 1
        return self.answer(func, *args, **(kwargs or {}))


@functools.cache
def intercepted(original: type[Any], interceptor: type[Interceptor]) -> type[Any]:
    """A subclass of a module's class that enters an interceptor around its forward.

    Raises (when its forward is called):
        InputError: there were more or fewer calls to answer than the interceptor expects.
    """
    # called by this name: not all versions of torch.compile follow super() to it
    inner = original.forward

    class Intercepted(original):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            # entered inside the wrapped forward: outside, torch.compile would apply the mode twice
            mode = interceptor(self)
            with mode:
                result = inner(self, *args, **kwargs)
            if not mode.counts_right():
                raise InputError(mode.gone_around())
            return result

    Intercepted.__name__, Intercepted.__qualname__ = original.__name__, original.__qualname__
    return Intercepted
