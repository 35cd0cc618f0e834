"""CUDA graphs: a whole forward with its collectives, launched by the host as one."""

import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ditplan.profiles.errors import InputError, PlanWarning
from ditplan.runtime.compilation.built import Built
from ditplan.runtime.takeover import signature_of_leaf

WARM_UP_CALLS = 2
"""Before a capture: the first compiles, loads kernels and makes groups, the second has all that."""

MOST_GRAPHS = 4


@dataclass(frozen=True)
class Captured:
    """A captured call: what to fill, what to launch, what to read."""

    graph: torch.cuda.CUDAGraph
    inputs: list[torch.Tensor]
    outputs: Any


class GraphedForward:
    """A forward that is captured when a signature of arguments is first seen and replayed after.

    A signature is all shapes, dtypes and values that aren't tensors. Weights are read at replay
    where they lay at capture: after replacing them (not after changing them in place) make a new
    one. Those that compiled code brought together, as `built` tells, are captured anew. All graphs
    share one memory pool, which is why results are copied out of it.

    Raises (when called):
        InputError: the forward can't be captured and must not fall back to eager calls.
    """

    def __init__(
        self,
        forward: Callable[..., Any],
        device: torch.device,
        may_fall_back: bool,
        most: int = MOST_GRAPHS,
        built: Built | None = None,
    ) -> None:
        """`most` signatures are kept at once, or as many as `built` says if that are more; the one
        longest unused goes.
        """
        self._at_least, self._built = most, built or Built()
        self._forward, self._weight_moves = forward, self._built.weight_moves
        self._device = device
        self._may_fall_back = may_fall_back
        self._captured: dict[Hashable, Captured | None] = {}
        self._hold: Callable[[], Sequence[Any]] = list
        self._held: Sequence[Any] = ()
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = capture_stream(device)

    def clear(self) -> None:
        """Forgets all that was captured."""
        self._captured.clear()

    def resume(self, forward: Callable[..., Any], held: Callable[[], Sequence[Any]]) -> None:
        """Goes on with another forward that does the same. What was captured stays if all that
        graphs hold beside their calls, as `held` tells it, is what it was at the last capture: the
        same objects, and equal numbers and words.
        """
        self._forward, self._hold = forward, held
        now = held()
        if len(now) != len(self._held) or not all(map(_is_same, now, self._held)):
            self.clear()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._forget_if_weights_moved()
        leaves, structure = pytree.tree_flatten((args, kwargs))
        key = (structure, tuple(signature_of_leaf(leaf) for leaf in leaves))
        if key not in self._captured:
            self._evict()
            self._captured[key] = self._try_capture(leaves, structure)
        captured = self._captured.pop(key)
        self._captured[key] = captured
        if captured is None:
            return self._forward(*args, **kwargs)
        tensors = (leaf for leaf in leaves if isinstance(leaf, torch.Tensor))
        for static, given in zip(captured.inputs, tensors, strict=True):
            static.copy_(given)
        captured.graph.replay()
        return pytree.tree_map_only(torch.Tensor, torch.clone, captured.outputs)

    def _forget_if_weights_moved(self) -> None:
        if self._weight_moves != self._built.weight_moves:
            self.clear()
            self._weight_moves = self._built.weight_moves

    def _evict(self) -> None:
        while len(self._captured) >= max(self._at_least, self._built.shapes):
            del self._captured[next(iter(self._captured))]

    def _try_capture(self, leaves: list[Any], structure: pytree.TreeSpec) -> Captured | None:
        try:
            return self._capture(leaves, structure)
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            if not self._may_fall_back:
                raise InputError(
                    f"the transformer can't be captured in a CUDA graph ({reason}); use a plan "
                    "with mode eager or compile"
                ) from error
            warnings.warn(
                f"the transformer runs without a CUDA graph, it can't be captured: {reason}",
                PlanWarning,
                stacklevel=3,
            )
            return None

    def _capture(self, leaves: list[Any], structure: pytree.TreeSpec) -> Captured:
        static = [leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(static, structure)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UP_CALLS):
                self._forward(*args, **kwargs)
        self._forget_if_weights_moved()
        torch.cuda.synchronize(self._device)
        # what the warm-up took is not needed again: replays have a pool of their own
        torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        # thread_local: the process group's watchdog asks for events of its own meanwhile
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            outputs = self._forward(*args, **kwargs)
        self._built.captures += 1
        self._held = self._hold()
        inputs = [leaf for leaf in static if isinstance(leaf, torch.Tensor)]
        return Captured(graph, inputs, outputs)


def _is_same(one: object, other: object) -> bool:
    """Whether it is one object, or two of a plain value: names of modules are made anew."""
    plain = isinstance(one, (bool, int, float, str)) and type(one) is type(other)
    return one is other or (plain and one == other)


@cache
def capture_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream on which a process captures: one, as cuBLAS keeps 32 MB for each it has run on."""
    return torch.cuda.Stream(device)
