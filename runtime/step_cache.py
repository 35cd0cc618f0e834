"""Step caches: predictions of a transformer that are extrapolated from those of earlier steps.

Which steps compute is a matter of their number alone, so all ranks agree on it without a word, and
a step that doesn't compute has no exchange either. What is kept is what the whole transformer
returns: a compiled block or a captured graph beneath doesn't know of it.
"""

from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from typing import Any

import torch
from diffusers.hooks.taylorseer_cache import TaylorSeerState
from torch import nn

from ditplan.profiles.configuration import TaylorSeer
from ditplan.runtime.takeover import (
    CurrentCall,
    as_output,
    inner_forward,
    names_arguments,
    replace_forward,
    replaced,
    sample_of,
)


class ExtrapolatedForward:
    """A transformer's forward that computes in some steps and extrapolates in the others.

    By finite differences of the predictions of the steps that computed, with diffusers' own
    `TaylorSeerState` (arXiv 2503.06923). The calls of a step that diffusers names (a pass with the
    prompt and one without) are extrapolated apart.
    """

    def __init__(self, model: nn.Module, cache: TaylorSeer, call: CurrentCall) -> None:
        self._cache = cache
        self._whole: Callable[..., Any] = inner_forward(model)
        self._named = names_arguments(model)
        self._call = call
        self._lists_samples = False
        self._states: defaultdict[str | None, TaylorSeerState] = defaultdict(
            lambda: TaylorSeerState(torch.float32, max_order=cache.order)
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the transformer returns, or would by what it returned before."""
        state = self._states[self._call.name]
        state.current_step += 1
        if not self._cache.computes(state.current_step):
            found = state.predict()
            prediction = found if self._lists_samples else found[0]
            return as_output(self._named(*args, **kwargs), prediction)
        output = self._whole(*args, **kwargs)
        prediction = sample_of(output)
        self._lists_samples = isinstance(prediction, list)
        state.update(tuple(prediction) if self._lists_samples else (prediction,))
        return output

    def forget(self) -> None:
        """Forgets all steps: another picture begins."""
        self._states.clear()


def apply_step_cache(pipeline: Any, model: nn.Module, cache: TaylorSeer, undo: ExitStack) -> None:
    """Has a transformer compute in some steps only; closing `undo` takes that away again.

    Steps are counted from where the pipeline sets the timesteps of its scheduler.
    """
    call = CurrentCall()
    extrapolated = ExtrapolatedForward(model, cache, call)
    scheduler = pipeline.scheduler
    set_timesteps = scheduler.set_timesteps

    @wraps(set_timesteps)
    def begin(*args: Any, **kwargs: Any) -> Any:
        extrapolated.forget()
        return set_timesteps(*args, **kwargs)

    undo.callback(extrapolated.forget)
    undo.enter_context(replaced(scheduler, "set_timesteps", begin))
    call.follow(model, undo)
    replace_forward(model, extrapolated, undo)
