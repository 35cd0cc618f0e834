"""A pipeline's own call, patch by patch across denoising steps (PipeFusion), without knowing it.

Every patch runs the unmodified `__call__` on latents of full size, with a scheduler of its own.
Patch 0 is the caller's pipeline in the caller's thread; copies of it are the others, suspended
where they call the transformer. Of the latents that a patch works on only its own tokens are right;
guidance and scheduler must therefore treat each token alone, which is checked in the warm-up.
"""

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch

from ditplan.profiles.errors import InputError
from ditplan.runtime.admission.randomness import RandomState
from ditplan.runtime.pipefusion.call_setup import SetupReplay
from ditplan.runtime.pipefusion.call_thread import CallThread
from ditplan.runtime.takeover import (
    as_output,
    call_arguments_of,
    names_arguments,
    replace_forward,
    take_calls,
)

Admit = Callable[[dict[str, Any]], None]

REMEDY = "use a plan with pipefusion 1"


class Predictor(Protocol):
    """Runs the transformer for a `PatchedCall`, on the whole sequence or on a patch.

    `call` numbers the transformer's calls within a step. All predictions have the latents' shape,
    with the last known values where a patch has none of its own.
    """

    patches: int
    warmup_steps: int

    @property
    def owns_latents(self) -> bool:
        """Whether this rank runs the calls of all patches, not of patch 0 alone."""

    def numbers(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Which patch each number of a prediction belongs to: a prediction's shape, batch 1."""

    def whole(self, inputs: dict[str, Any], call: int) -> torch.Tensor:
        """The prediction for all tokens, on every rank."""

    def send(self, patch: int, inputs: dict[str, Any], call: int) -> None:
        """Has a patch's prediction begun."""

    def receive(self, patch: int, call: int) -> torch.Tensor:
        """The prediction with the patch's values, waited for; older ones where latents aren't."""

    def abandon(self) -> None:
        """Ends what is on its way, of a call that won't go on; all ranks do."""

    def agree(self, latents: torch.Tensor) -> torch.Tensor:
        """The final latents of the rank that owns them, on every rank."""


def apply_patches(pipeline: Any, predictor: Predictor, admit: Admit, undo: ExitStack) -> None:
    """Has the pipeline's calls run patch by patch; closing `undo` takes that away again.

    `admit` is given the arguments of a call's first call of the transformer, before any is made.
    """
    original = type(pipeline)

    def run(owner: Any, own: Any, args: Any, kwargs: Any) -> Any:
        given = call_arguments_of(own, owner, args, kwargs)
        return PatchedCall(owner, original, predictor, admit, given).run()

    take_calls(pipeline, run, undo)


class PatchedCall:
    """One call of a pipeline; its transformer's forward drives the other patches."""

    def __init__(
        self,
        pipeline: Any,
        pipeline_class: type[Any],
        predictor: Predictor,
        admit: Admit,
        arguments: dict[str, Any],
    ) -> None:
        """Takes the arguments of the pipeline's call.

        Raises:
            InputError: one that can't work across steps.
        """
        for name in ("callback_on_step_end", "callback"):
            if arguments.get(name) is not None:
                raise InputError(
                    f"{name} expects the latents of one step, with pipefusion patches are at "
                    f"different steps; {REMEDY}"
                )
        self._pipeline, self._class = pipeline, pipeline_class
        self._predictor, self._admit, self._arguments = predictor, admit, arguments
        self._model, self._device = pipeline.transformer, pipeline._execution_device
        self._named = names_arguments(self._model)
        self._scheduler = _copy_of(pipeline.scheduler)
        self._setup = SetupReplay(arguments, self._device)
        patches = predictor.patches
        self._mine = range(1, patches) if predictor.owns_latents else range(0)
        self._threads: dict[int, CallThread] = {}
        self._random: dict[int, RandomState] = {}
        self._running: int | None = None
        self._requests: dict[int, dict[str, Any]] = {}
        self._awaited: dict[int, int] = {}
        self._latents: dict[int, torch.Tensor] = {}
        self._steps = dict.fromkeys(range(patches + 1), 0)
        self._calls = 0
        self._merged = False

    @property
    def _witness(self) -> int:
        """Number of the thread that tells whether tokens are mixed."""
        return self._predictor.patches

    def run(self) -> Any:
        """What the pipeline's call gives.

        Raises:
            InputError: the call mixes tokens, ended early, or can't run in patches otherwise.
        """
        with ExitStack() as undo:
            undo.callback(self._stop_all)
            replace_forward(self._model, self._forward, undo)
            undo.enter_context(self._watched(0, self._pipeline))
            undo.enter_context(self._setup.recorded(self._pipeline))
            result = self._class.__call__(self._pipeline, **self._arguments)
        if not self._merged:
            self._predictor.abandon()
            raise InputError(
                "the call ended before its last step (by an interrupt?): its patches were at "
                f"different steps, so there is no picture; {REMEDY}"
            )
        return result

    @contextmanager
    def _watched(self, number: int, pipeline: Any) -> Iterator[None]:
        scheduler = pipeline.scheduler
        original = type(scheduler)

        # of the class, not the instance: who times steps from outside then sees all of this one's
        class Watched(original):  # type: ignore[misc, valid-type]
            @functools.wraps(original.step)
            def step(own, *args: Any, **kwargs: Any) -> Any:
                # image-to-image pipelines make only the last of the scheduler's steps
                steps = getattr(pipeline, "_num_timesteps", None) or len(own.timesteps)
                return self._stepped(number, steps, original.step(own, *args, **kwargs))

        Watched.__name__, Watched.__qualname__ = original.__name__, original.__qualname__
        scheduler.__class__ = Watched
        try:
            yield
        finally:
            scheduler.__class__ = original

    def _start(self, number: int) -> None:
        def call(_thread: CallThread) -> Any:
            clone = copy.copy(self._pipeline)
            clone.__class__ = self._class
            vars(clone)["scheduler"] = _copy_of(self._scheduler)
            vars(clone)["_progress_bar_config"] = {"disable": True}
            with self._watched(number, clone):
                arguments = self._setup.replayed(clone)
                return self._class.__call__(clone, **(self._arguments | arguments))

        self._threads[number] = CallThread(call, self._device)
        self._random[number] = self._setup.random
        self._resume(number)

    def _resume(self, number: int, prediction: torch.Tensor | None = None) -> None:
        mine = RandomState.now(self._device)
        self._random[number].restore()
        self._running = number
        try:
            request = self._threads[number].resume(prediction)
        finally:
            self._running = None
            self._random[number] = RandomState.now(self._device)
            mine.restore()
        if self._threads[number].finished:
            raise InputError(
                "the patches' calls don't ask the transformer alike, so they can't be denoised "
                f"apart; {REMEDY}"
            )
        self._requests[number] = request

    def _stop_all(self) -> None:
        for thread in self._threads.values():
            thread.stop()

    def _stepped(self, number: int, steps: int, result: Any) -> Any:
        latents = result[0] if isinstance(result, tuple) else result.prev_sample
        self._latents[number] = latents
        self._steps[number] += 1
        last = self._steps[number] == steps
        if number:
            if last:
                # never resumed: decoding is patch 0's
                self._threads[number].suspend({})
            return result
        self._calls = 0
        self._require_all_stepped(latents)
        if not last:
            return result
        for patch in self._mine:
            if patch in self._awaited:
                self._resume(patch, self._predictor.receive(patch, self._awaited.pop(patch)))
        merged = self._predictor.agree(self._merge(latents))
        self._merged = True
        if isinstance(result, tuple):
            return (merged, *result[1:])
        return type(result)(**(dict(result) | {"prev_sample": merged}))

    def _require_all_stepped(self, latents: torch.Tensor) -> None:
        """Refuses a call whose scheduler steps only some of the latents that are predicted.

        Raises:
            InputError: it does.
        """
        predicted = self._numbers[:, : latents.shape[1]].shape[1:]
        if latents.shape[1:] != predicted:
            raise InputError(
                f"this call steps latents of {tuple(latents.shape[1:])} where the transformer "
                f"predicts {tuple(predicted)} (some are a given picture's?), so patches can't be "
                f"told apart; {REMEDY}"
            )

    def _merge(self, latents: torch.Tensor) -> torch.Tensor:
        for patch in self._mine:
            latents = torch.where(self._has(patch, latents), self._latents[patch], latents)
        return latents

    def _has(self, patch: int, latents: torch.Tensor) -> torch.Tensor:
        """Which latents are a patch's; a prediction may have more channels, behind theirs."""
        return self._numbers[:, : latents.shape[1]] == patch

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        inputs = self._named(*args, **kwargs)
        if self._running is not None:
            return as_output(inputs, self._threads[self._running].suspend(inputs))
        return as_output(inputs, self._predict(inputs))

    def _predict(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Patch 0's prediction; the others go on as far as they can without it."""
        call, self._calls = self._calls, self._calls + 1
        if call == 0:
            if not self._steps[0]:
                self._admit(inputs)
                self._numbers = self._predictor.numbers(inputs)
            self._check_that_tokens_are_apart()
        if self._steps[0] < self._predictor.warmup_steps:
            return self._warm_up(inputs, call)
        if self._witness in self._threads:
            self._threads.pop(self._witness).stop()
        for patch in range(self._predictor.patches):
            mine = patch in self._mine
            if mine and patch in self._awaited:
                self._resume(patch, self._predictor.receive(patch, self._awaited[patch]))
            self._predictor.send(patch, self._requests[patch] if mine else inputs, call)
            self._awaited[patch] = call
        return self._predictor.receive(0, call)

    def _warm_up(self, inputs: dict[str, Any], call: int) -> torch.Tensor:
        prediction = self._predictor.whole(inputs, call)
        if not self._threads:
            # now, while the device has something to do
            for number in (*self._mine, self._witness):
                self._start(number)
        for patch in self._mine:
            self._resume(patch, prediction.clone())
        generator = torch.Generator(prediction.device).manual_seed(0)
        noise = torch.randn(
            prediction.shape, dtype=torch.float32, device=prediction.device, generator=generator
        )
        wrong = noise.to(prediction.dtype) * prediction.std()
        self._resume(self._witness, torch.where(self._numbers == 0, prediction, wrong))
        return prediction

    def _check_that_tokens_are_apart(self) -> None:
        """Compares patch 0 with a witness that was given noise for all other patches.

        Raises:
            InputError: its tokens depend on others.
        """
        if self._witness not in self._threads or not self._steps[0]:
            return
        mine = self._has(0, self._latents[0])
        seen, expected = (self._latents[n].where(mine, 0) for n in (self._witness, 0))
        if not torch.allclose(seen, expected, rtol=1e-3, atol=1e-5):
            raise InputError(
                "guidance or scheduler of this call mixes tokens (by a norm or threshold over the "
                "whole picture), so patches can't be denoised apart; switch that off or "
                f"{REMEDY}"
            )


def _copy_of(scheduler: Any) -> Any:
    """A scheduler in the same state, without what others have put around its step."""
    made = copy.deepcopy({k: v for k, v in vars(scheduler).items() if k != "step"})
    clone = object.__new__(type(scheduler))
    vars(clone).update(made)
    return clone
