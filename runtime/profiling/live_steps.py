"""Watches the calls of a pipeline under a plan: whether they still take what the plan says."""

import logging
import math
import warnings
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from ditplan.profiles.errors import PlanWarning
from ditplan.profiles.evidence import evidence_of
from ditplan.profiles.family import ModelFamily, known_family, number_of, pixels_per_latent
from ditplan.profiles.plan import ExecutionPlan
from ditplan.runtime.groups import RankContext
from ditplan.runtime.models.inputs import InputShape, latent_frames_per_token
from ditplan.runtime.profiling.denoising_clock import mark, watching_steps
from ditplan.runtime.profiling.drift import (
    DriftReport,
    Stage,
    StepBounds,
    watches_around_steps,
    watches_of,
)

LOG = logging.getLogger("ditplan")

OnDrift = Callable[[DriftReport], None]

LIVE_STEPS = "ditplan_live_steps"
"""Attribute of a transformer under a plan whose calls are watched."""

METRICS = {
    "seconds": "Median of the last ones.",
    "expected_seconds": "As the plan says, or the first calls.",
    "most_seconds": "Beyond it is drift.",
    "observed_total": "How many there were.",
    "drifting": "1 while most of the last ones are beyond the bound.",
}
"""What is told of each stage, and its help."""


class LiveSteps:
    """The live times of a plan on one rank.

    Nothing is waited for: times on a GPU are read when they are there. The first call compiles and
    captures and isn't looked at; neither are calls of other sizes than the plan's. Encoding and
    decoding are held against earlier calls of the same kind in a row.
    """

    def __init__(
        self,
        pipeline: Any,
        plan: ExecutionPlan,
        context: RankContext,
        on_drift: OnDrift | None = None,
    ) -> None:
        self._pipeline, self._plan, self._on_drift = pipeline, plan, on_drift
        self._rank, self._device = context.rank, context.device
        self._bounds = StepBounds.of(plan)
        self._watches = watches_of(self._bounds)
        self._shape = _planned_shape(pipeline, plan)
        self._unread: deque[tuple[Stage, Any, Any, int]] = deque()
        self._has_warned = False
        self._kind: Hashable = None
        self.calls, self.calls_of_other_sizes = 0, 0

    @contextmanager
    def watching(self, kind: Hashable) -> Iterator[None]:
        """Watches one call of the pipeline, which is of some kind."""
        if kind != self._kind:
            self._kind = kind
            self._watches |= watches_around_steps()
        marks = [mark(self._device)]
        is_alike = True

        def started(inputs: Mapping[str, Any]) -> None:
            nonlocal is_alike
            if len(marks) == 1:
                is_alike = self._shape is None or self._shape == _shape_of(inputs)
                marks.append(mark(self._device))

        def stepped() -> None:
            marks.append(mark(self._device))
            if self.calls and is_alike:
                self._note_step(marks)

        with watching_steps(self._pipeline, started, stepped):
            yield
        if self.calls and is_alike and len(marks) > 2:
            self._unread.append(("encoding", marks[0], marks[1], 1))
            self._unread.append(("decoding", marks[-1], mark(self._device), 1))
        self.calls += 1
        self.calls_of_other_sizes += not is_alike
        self.read()

    def _note_step(self, marks: list[Any]) -> None:
        """The last step, or steps that are taken together; `marks` are of the call's begin, of the
        transformer's first call and of the end of each step.
        """
        together = self._bounds.together
        done = len(marks) - 2 - self._bounds.skipped
        if done > 0 and done % together == 0:
            self._unread.append(("denoising", marks[-1 - together], marks[-1], together))
        self.read()

    def read(self) -> None:
        """Reads the times that are there, and reports what they show."""
        while self._unread:
            stage, begun, ended, steps = self._unread[0]
            if self._device.type == "cuda" and not ended.query():
                return
            self._unread.popleft()
            on_gpu = self._device.type == "cuda"
            seconds = begun.elapsed_time(ended) / 1e3 if on_gpu else ended - begun
            if self._watches[stage].add(seconds / steps):
                self._report(stage)

    def _report(self, stage: Stage) -> None:
        watch = self._watches[stage]
        assert watch.median_s is not None
        assert watch.expected_s is not None
        assert watch.most_s is not None
        report = DriftReport(
            model=self._plan.model.name,
            plan=str(self._plan.configuration),
            evidence=evidence_of(self._plan),
            rank=self._rank,
            stage=stage,
            has_ended=not watch.is_drifting,
            seconds=watch.median_s,
            expected_s=watch.expected_s,
            most_s=watch.most_s,
            seen=watch.seen,
        )
        LOG.warning("%s", report.to_json())
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(str(report), PlanWarning, stacklevel=2)
        if self._on_drift is not None:
            self._on_drift(report)

    def prometheus(self) -> str:
        """All that is known now, as Prometheus' text format has it."""
        self.read()
        plan = {"model": self._plan.model.name, "plan": str(self._plan.configuration)}
        common = plan | {"rank": str(self._rank)}
        lines = []
        for name, text in METRICS.items():
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += [f"# HELP ditplan_stage_{name} {text}", f"# TYPE ditplan_stage_{name} {kind}"]
            for stage, watch in self._watches.items():
                values = {
                    "seconds": watch.median_s,
                    "expected_seconds": watch.expected_s,
                    "most_seconds": watch.most_s,
                    "observed_total": watch.seen,
                    "drifting": int(watch.is_drifting),
                }
                if (value := values[name]) is not None:
                    labels = _labels(common | {"stage": stage})
                    lines.append(f"ditplan_stage_{name}{labels} {value:.9g}")
        for name, count in (
            ("calls", self.calls),
            ("calls_of_other_sizes", self.calls_of_other_sizes),
        ):
            lines += [f"# TYPE ditplan_{name}_total counter"]
            lines.append(f"ditplan_{name}_total{_labels(common)} {count}")
        return "\n".join(lines) + "\n"


def keep_live_steps(live: LiveSteps, model: torch.nn.Module, undo: ExitStack) -> None:
    """Has `live_steps_of` find it while the plan is in force."""
    vars(model)[LIVE_STEPS] = live
    undo.callback(vars(model).pop, LIVE_STEPS)


def live_steps_of(pipeline: Any) -> LiveSteps | None:
    """What watches a pipeline's calls under a plan; None where there is nothing to watch."""
    found: LiveSteps | None = vars(pipeline.transformer).get(LIVE_STEPS)
    return found


def _labels(values: Mapping[str, str]) -> str:
    pairs = (f"{name}={_quoted(value)}" for name, value in values.items())
    return "{" + ",".join(pairs) + "}"


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _shape_of(inputs: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The shape of a transformer's first input: the latents, or a list of them."""
    value = next(iter(inputs.values()), None)
    if isinstance(value, list) and value and isinstance(value[0], torch.Tensor):
        return (len(value), *value[0].shape)
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None


def _planned_shape(pipeline: Any, plan: ExecutionPlan) -> tuple[int, ...] | None:
    """The shape of the latents that the transformer is given in the plan's workload; None where the
    pipeline has no VAE to tell it by.
    """
    model, vae = pipeline.transformer, getattr(pipeline, "vae", None)
    family: ModelFamily | None = known_family(type(model).__name__)
    if vae is None or family is None:
        return None
    work, config = plan.workload, model.config
    unit = pixels_per_latent(vae.config) * number_of(family.latents_per_token, config)
    frames = family.frames_per_latent * latent_frames_per_token(family, config)
    size = (math.ceil(work.frames / frames), work.height // unit, work.width // unit)
    batch = work.batch * (work.passes if family.guidance == "batched" else 1)
    sizes = InputShape.of_tokens(family, config, batch, work.text_tokens, size)
    dims = next(iter(family.inputs_of(config).values()))
    return sizes.shape(dims, config)
