"""CFG parallelism for pipelines that call the transformer once for each pass of a step.

Each rank computes the call that is its own and returns a buffer for the others; when the last call
of a step is made all buffers are filled. So guidance is the pipeline's own.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from ditplan.profiles.errors import InputError
from ditplan.profiles.family import ModelFamily
from ditplan.runtime.admission.calls import Calls
from ditplan.runtime.collectives import all_gather_uneven
from ditplan.runtime.groups import AxisGroup
from ditplan.runtime.takeover import (
    CurrentCall,
    as_output,
    inner_forward,
    names_arguments,
    replace_forward,
    replaced,
    sample_of,
)

PASSES = ("cond", "uncond")
"""The names that diffusers' pipelines give to the calls of a step, in their order."""


class CallSplit:
    """Splits a step's calls of one transformer over the ranks of a cfg group of two."""

    def __init__(
        self,
        model: nn.Module,
        family: ModelFamily,
        group: AxisGroup,
        call: CurrentCall,
        is_shared: Callable[[], bool],
    ) -> None:
        """`is_shared` says whether the calls that are made now are shared out."""
        forward = inner_forward(model)
        self._is_shared = is_shared
        self._family, self._group, self._whole = family, group, forward
        self._named = names_arguments(model)
        self._call = call
        self._unfilled: torch.Tensor | None = None
        self._known: dict[tuple[Any, ...], torch.Tensor] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """One of the calls. One that diffusers doesn't name as a pass is made by every rank.

        Raises:
            InputError: the step before made only one of the calls.
        """
        if self._call.name not in PASSES or not self._is_shared():
            return self._whole(*args, **kwargs)
        given = self._named(*args, **kwargs)
        number = PASSES.index(self._call.name)
        if number == 0:
            self.require_filled()
        first = given[self._family.batched_inputs[0]]
        shape = (tuple(first.shape), first.dtype)
        # what shape a call returns a rank sees by making its first one, whichever it is
        if number == self._group.index or shape not in self._known:
            sample = sample_of(self._whole(**given)).clone()
            self._known[shape] = torch.empty_like(sample, device="meta")
        else:
            sample = torch.empty_like(self._known[shape], device=first.device)
        if number == 0:
            self._unfilled = sample
            return as_output(given, sample)
        if self._unfilled is None:
            raise InputError(
                f"the transformer was called for {self._call.name} without a call for {PASSES[0]} "
                "before it, so there is nothing to share; use a plan with cfg 1"
            )
        mine = sample if self._group.index else self._unfilled
        both = all_gather_uneven(mine[None], 0, (1, 1), self._group)
        self._unfilled.copy_(both[0])
        sample.copy_(both[1])
        self._unfilled = None
        return as_output(given, sample)

    def require_filled(self) -> None:
        """Refuses to go on with a prediction that another rank was to make.

        Raises:
            InputError: there is one.
        """
        if self._unfilled is not None:
            self._unfilled = None
            raise InputError(
                "the plan has cfg 2, this call of the pipeline makes one pass a step; give it a "
                "negative prompt and a guidance scale above 1, or use a plan with cfg 1"
            )

    @contextmanager
    def picture(self, scheduler: Any) -> Iterator[None]:
        """A picture is made, with the steps of a scheduler."""
        self._unfilled = None
        step = scheduler.step

        def checked(*args: Any, **kwargs: Any) -> Any:
            self.require_filled()
            return step(*args, **kwargs)

        with replaced(scheduler, "step", checked):
            yield
        self.require_filled()


def apply_calls(
    pipeline: Any,
    model: nn.Module,
    family: ModelFamily,
    group: AxisGroup,
    calls: Calls,
    undo: ExitStack,
) -> None:
    """Splits the calls of each step over the group; closing `undo` takes that away again.

    Those in a call of the pipeline: what another pipeline asks of the same transformer is computed
    on every rank. Where the pipeline can't be called, all are split.

    Raises:
        InputError: the transformer has no `cache_context`, by which the calls are told apart.
    """
    call = CurrentCall()
    if not call.follow(model, undo):
        raise InputError(
            f"{type(model).__name__} of this diffusers has no cache_context, by which a step's "
            "passes are told apart; install a newer one or use a plan with cfg 1"
        )
    is_called = callable(pipeline)
    split = CallSplit(model, family, group, call, lambda: calls.is_in_call or not is_called)
    if is_called:
        calls.around.append(lambda: split.picture(pipeline.scheduler))
    else:
        undo.enter_context(split.picture(pipeline.scheduler))
    replace_forward(model, split, undo)
