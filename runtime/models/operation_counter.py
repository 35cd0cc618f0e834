"""How many kernels an eager forward launches, counted by module."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.module_tracker import ModuleTracker

WITHOUT_KERNEL = (
    torch.ops.aten._unsafe_view.default,
    torch.ops.aten.detach.default,
    torch.ops.aten.empty.memory_format,
)


class OperationCounter(TorchDispatchMode):
    """Counts the tensor operations inside each module; views and empty tensors aren't any.

    `counts` is by the names that the tracker gives to modules, the one of a root being its class.
    """

    def __init__(self, tracker: ModuleTracker) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()
        self._tracker = tracker

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Runs an operation, and counts it where it launches a kernel."""
        is_view = isinstance(func, torch._ops.OpOverload) and func.is_view
        if not is_view and func not in WITHOUT_KERNEL:
            self.counts.update(self._tracker.parents)
        return func(*args, **(kwargs or {}))
