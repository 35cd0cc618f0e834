"""What the tests of PipeFusion ask of ranks."""

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar
from unittest.mock import patch

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from ditplan.profiles.errors import InputError
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import ExecutionPlan
from ditplan.profiles.workload import Workload
from ditplan.runtime.groups import RankContext
from ditplan.runtime.models.loading import load_pipeline, prompt_embeddings
from ditplan.runtime.native import parallelize
from ditplan.runtime.profiling.denoising_clock import DenoisingClock
from ditplan.testing.on_ranks import latents_of_call
from tests.distributed.rank_tasks import differing, state_of

GAIN = 2.0
BREAK_AT = 3


class Normalised(FlowMatchEulerDiscreteScheduler):
    """A scheduler that mixes tokens: by the norm of all."""

    def step(self, model_output: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """As usual, of a prediction of a norm of its own."""
        usual: Any = super()
        return usual.step(10 * model_output / model_output.norm(), *args, **kwargs)


def scheduler_named(name: str) -> Any:
    """A scheduler by what it is to show."""
    flow: dict[str, Any] = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    made: dict[str, Callable[[], Any]] = {
        "dpm": lambda: DPMSolverMultistepScheduler(**flow),
        "unipc": lambda: UniPCMultistepScheduler(**flow),
        "sde": lambda: DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", **flow),
        "stochastic": lambda: FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
        "normalised": lambda: Normalised(shift=3.0),  # type: ignore[no-untyped-call]
        "dpm thresholding": lambda: DPMSolverMultistepScheduler(
            thresholding=True, sample_max_value=100.0, **flow
        ),
        "unipc thresholding": lambda: UniPCMultistepScheduler(
            thresholding=True, sample_max_value=100.0, **flow
        ),
    }
    return made[name]()


def lively_pipeline(spec: ModelSpec, scheduler: str = "") -> Any:
    """A spec's pipeline whose blocks have larger weights, so that stale keys make a difference."""
    pipeline = load_pipeline(spec, None, torch.device("cpu"), "float32")
    for name, weight in pipeline.transformer.named_parameters():
        if "blocks" in name and weight.ndim == 2:
            weight.data.mul_(GAIN)
    if scheduler:
        pipeline.scheduler = scheduler_named(scheduler)
    return pipeline


def patched_latents(
    context: RankContext,
    spec: ModelSpec,
    plans: Sequence[ExecutionPlan],
    scheduler: str = "",
    **more: Any,
) -> list[torch.Tensor | None]:
    """Final latents of plans one after the other; None on ranks that one doesn't use."""
    pipeline = _kept(context, spec, scheduler)
    found: list[torch.Tensor | None] = []
    for plan in plans:
        with parallelize(pipeline, plan, context):
            used = context.rank in plan.configuration.placement
            found.append(latents_of_call(pipeline, spec, plan.workload, **more) if used else None)
    return found


def latents_of_calls(
    context: RankContext, spec: ModelSpec, plan: ExecutionPlan, works: Sequence[Workload]
) -> list[torch.Tensor]:
    """Final latents of several calls while one plan is in force."""
    pipeline = _kept(context, spec)
    with parallelize(pipeline, plan, context):
        return [latents_of_call(pipeline, spec, work) for work in works]


def latents_of_negatives(
    context: RankContext, spec: ModelSpec, plan: ExecutionPlan, lengths: Sequence[int]
) -> list[torch.Tensor]:
    """Final latents of calls whose negative prompts have other lengths, under one plan."""
    pipeline = _kept(context, spec)
    with parallelize(pipeline, plan, context):
        return [
            latents_of_call(pipeline, spec, plan.workload, **negative_of(spec, plan.workload, n))
            for n in lengths
        ]


def negative_of(spec: ModelSpec, work: Workload, length: int) -> dict[str, torch.Tensor]:
    """The negative prompt's embeddings, cut to a length."""
    words = prompt_embeddings(spec, work, torch.device("cpu"), seed=1)
    return {"negative_prompt_embeds": words["negative_prompt_embeds"][:, :length]}


def latents_of_interrupted_call(
    context: RankContext, spec: ModelSpec, plan: ExecutionPlan
) -> torch.Tensor:
    """A call that is told to end early by its scheduler."""
    pipeline = _kept(context, spec)

    def interrupt() -> None:
        pipeline._interrupt = True

    with ExitStack() as undo:
        _break_at(pipeline, interrupt, undo)
        with parallelize(pipeline, plan, context):
            return latents_of_call(pipeline, spec, plan.workload)


def die_while_denoising(
    context: RankContext, spec: ModelSpec, plan: ExecutionPlan, rank: int
) -> None:
    """A call in which one rank kills itself."""
    pipeline = _kept(context, spec)

    def die() -> None:
        if context.rank == rank:
            os.kill(os.getpid(), signal.SIGKILL)

    with ExitStack() as undo:
        _break_at(pipeline, die, undo)
        with parallelize(pipeline, plan, context):
            latents_of_call(pipeline, spec, plan.workload)


def latents_with_controlnet(
    context: RankContext, spec: ModelSpec, plan: ExecutionPlan
) -> torch.Tensor:
    """A call whose transformer is given the residuals of a ControlNet."""
    pipeline = _kept(context, spec)

    def with_residuals(_module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        residuals = {"block_controlnet_hidden_states": [torch.zeros(2, 63, 80)]}
        return args, kwargs | residuals

    hook = pipeline.transformer.register_forward_pre_hook(with_residuals, with_kwargs=True)
    try:
        with parallelize(pipeline, plan, context):
            return latents_of_call(pipeline, spec, plan.workload)
    finally:
        hook.remove()


def left_on_pipeline(
    context: RankContext, spec: ModelSpec, plan: ExecutionPlan, scheduler: str
) -> list[str]:
    """What a call under a plan, refused or not, has left changed once the plan is closed."""
    pipeline = _kept(context, spec, scheduler)
    before = state_of(pipeline)
    try:
        with parallelize(pipeline, plan, context):
            latents_of_call(pipeline, spec, plan.workload)
    except InputError:
        pass
    return differing(before, state_of(pipeline))


def steps_seen(context: RankContext, spec: ModelSpec, plan: ExecutionPlan) -> tuple[int, float]:
    """How many steps the clock counts, and for how long."""
    pipeline, clock = _kept(context, spec), DenoisingClock(context.device)
    with parallelize(pipeline, plan, context), clock.watching(pipeline):
        latents_of_call(pipeline, spec, plan.workload)
    return clock.steps, clock.seconds()


def _kept(context: RankContext, spec: ModelSpec, scheduler: str = "") -> Any:
    """The spec's lively pipeline, kept for the tests that follow."""
    key = f"lively pipeline {spec.config_hash} {scheduler}"
    if key not in context.kept:
        context.kept[key] = lively_pipeline(spec, scheduler)
    return context.kept[key]


def _break_at(pipeline: Any, act: Any, undo: ExitStack) -> None:
    """Has `act` called in the step after BREAK_AT steps."""
    usual = pipeline.scheduler

    class Breaking(type(usual)):  # type: ignore[misc]
        def step(self, *args: Any, **kwargs: Any) -> Any:
            if self.step_index == BREAK_AT:
                act()
            return super().step(*args, **kwargs)

    undo.callback(setattr, pipeline, "scheduler", usual)
    pipeline.scheduler = Breaking.from_config(usual.config)


class CountedGraphs:
    """In a GraphedForward's place, where there is no GPU: holds what it is called with."""

    made: ClassVar[list["CountedGraphs"]] = []

    def __init__(self, forward: Callable[..., Any], *_: Any, **__: Any) -> None:
        self._forward = forward
        self.held: list[Any] = []
        self.made.append(self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The forward as it is."""
        self.held.append((args, kwargs))
        return self._forward(*args, **kwargs)

    def clear(self) -> None:
        """As a GraphedForward's."""
        self.held.clear()


def graphs_held(context: RankContext, spec: ModelSpec, plan: ExecutionPlan) -> tuple[int, int]:
    """How many calls are held as graphs while a plan is in force, and after it was taken away."""
    pipeline = _kept(context, spec)
    CountedGraphs.made.clear()
    admitting = patch("ditplan.runtime.native.require_mode")
    with admitting, patch("ditplan.runtime.native.GraphedForward", CountedGraphs):
        with parallelize(pipeline, plan, context):
            latents_of_call(pipeline, spec, plan.workload)
            during = sum(len(one.held) for one in CountedGraphs.made)
        return during, sum(len(one.held) for one in CountedGraphs.made)
