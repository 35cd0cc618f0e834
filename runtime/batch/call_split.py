"""CFG parallelism for pipelines that call the transformer once for each pass of a step.

Each rank computes the call that is its own and returns a buffer for the others; when the last call
of a step is made all buffers are filled. So guidance is the pipeline's own.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from ditplan.profiles.errors import InputError
from ditplan.profiles.family import ModelFamily
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
        forward: Callable[..., Any],
        call: CurrentCall,
    ) -> None:
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
        if self._call.name not in PASSES:
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


def apply_calls(
    pipeline: Any, model: nn.Module, family: ModelFamily, group: AxisGroup, undo: ExitStack
) -> None:
    """Splits the calls of each step over the group; closing `undo` takes that away again.

    Raises:
        InputError: the transformer has no `cache_context`, by which the calls are told apart.
    """
    call = CurrentCall()
    if not call.follow(model, undo):
        raise InputError(
            f"{type(model).__name__} of this diffusers has no cache_context, by which a step's "
            "passes are told apart; install a newer one or use a plan with cfg 1"
        )
    calls = CallSplit(model, family, group, inner_forward(model), call)
    scheduler = pipeline.scheduler
    step = scheduler.step

    def checked(*args: Any, **kwargs: Any) -> Any:
        calls.require_filled()
        return step(*args, **kwargs)

    undo.enter_context(replaced(scheduler, "step", checked))
    replace_forward(model, calls, undo)
