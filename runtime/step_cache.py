"""Step caches: predictions of a transformer that are extrapolated from those of earlier steps.

Which steps compute is a matter of their number alone, so all ranks agree on it without a word, and
a step that doesn't compute has no exchange either. What is kept is what the whole transformer
returns: a compiled block or a captured graph beneath doesn't know of it.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
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
        self._call, self._calls = call, 0
        self._lists_samples = False
        self._states: defaultdict[tuple[str | None, int], TaylorSeerState] = defaultdict(
            lambda: TaylorSeerState(torch.float32, max_order=cache.order)
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the transformer returns, or would by what it returned before."""
        # without names it is their order in a step that tells calls apart
        name = self._call.name
        state = self._states[name, self._calls if name is None else 0]
        self._calls += name is None
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
        self._calls = 0

    @contextmanager
    def picture(self, scheduler: Any) -> Iterator[None]:
        """A picture is made, with the steps of a scheduler."""
        self.forget()
        own = scheduler.step

        @wraps(own)
        def step(*args: Any, **kwargs: Any) -> Any:
            self._calls = 0
            return own(*args, **kwargs)

        with replaced(scheduler, "step", step):
            yield
        self.forget()


def apply_step_cache(
    pipeline: Any,
    model: nn.Module,
    cache: TaylorSeer,
    around: list[Callable[[], AbstractContextManager[None]]],
    undo: ExitStack,
) -> None:
    """Has a transformer compute in some steps only; closing `undo` takes that away again.

    Steps are counted within a call of the pipeline, with the scheduler that it then has: what is
    put into `around` is entered for it.
    """
    call = CurrentCall()
    extrapolated = ExtrapolatedForward(model, cache, call)
    undo.callback(extrapolated.forget)
    around.append(lambda: extrapolated.picture(pipeline.scheduler))
    call.follow(model, undo)
    replace_forward(model, extrapolated, undo)
