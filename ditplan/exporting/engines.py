"""A plan as flags of another engine: xDiT's, SGLang's, vLLM-Omni's.

All three order ranks alike: dp, cfg, stages, ring, ulysses, far neighbours first
(`tp-sp-pp-cfg-dp` in their `parallel_state.py`, last axis slowest, Ulysses within the ring).
"""

import shlex
from dataclasses import dataclass

from ditplan.exporting.engine_words import (
    SGLANG_WORDS,
    VLLM_WORDS,
    XDIT_WORDS,
    EngineWords,
    Word,
)
from ditplan.exporting.exported import call_of_plan, commented, evidence
from ditplan.profiles.backend import Exported
from ditplan.profiles.catalog import find_model, model_names
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.errors import Command, InputError, Setting
from ditplan.profiles.mesh import AXES
from ditplan.profiles.model import Mode
from ditplan.profiles.plan import ExecutionPlan

MODEL = '"${MODEL:?set MODEL to the folder or hub id of the weights}"'
Flags = list[tuple[str, str]]
"""Names and values; an empty value is a switch."""


@dataclass(frozen=True)
class Engine:
    """What an engine can do of a configuration, and the words in which it is told."""

    name: str
    version: str
    axes: tuple[str, ...]
    modes: tuple[Mode, ...]
    words: EngineWords

    def require_axes(self, plan: ExecutionPlan) -> None:
        """Refuses a plan whose mesh the engine doesn't have.

        Raises:
            InputError: names the axis and how to get another plan.
        """
        for axis in AXES:
            if axis not in self.axes and getattr(plan.mesh, axis) > 1:
                raise InputError(
                    f"{self.name} has no {axis}, and the plan is {plan.mesh}; tune with it at 1: `",
                    Command("tune", (Setting("model", plan.model.name), Setting(axis, 1))),
                    "`",
                )
        if self.name == "xDiT" and plan.mesh.cfg > 2:
            raise InputError(
                f"xDiT shares guidance out to 2 ranks, and the plan is {plan.mesh}; tune with `",
                Command("tune", (Setting("model", plan.model.name), Setting("cfg", 2))),
                "`",
            )

    def not_expressed(self, plan: ExecutionPlan) -> tuple[str, ...]:
        """What of a plan the engine doesn't do, a sentence each."""
        one = plan.configuration
        left = [axis for axis in one.order if getattr(one.mesh, axis) > 1]
        own = [axis for axis in AXES if axis in left]
        found = []
        if left != own:
            found.append(f"the order {one.order_text}: {self.name} has {' > '.join(own)}")
        elif not one.follows_order:
            found.append(f"the placement {one.placement}: {self.name} takes ranks in order")
        if one.mode not in self.modes:
            near = "compile" if "compile" in self.modes and "compile" in one.mode else "eager"
            found.append(f"mode {one.mode}: {self.name} runs {near} instead")
        if one.weights == "sharded" and not self.words.has("sharded"):
            found.append("weights in pieces: each rank holds all of them, and needs the memory")
        if one.token_shares:
            found.append(f"{one.shares_text}: {self.name} shares tokens out equally")
        if one.step_cache:
            found.append(f"step cache {one.step_cache}: every step is computed")
        if one.ring != "pass" and not self.words.gathers(one):
            found.append(f"ring variant {one.ring}: {self.name} passes keys on from rank to rank")
        if one.attention not in ("auto", "cpu"):
            found.append(f"attention kernel {one.attention}: {self.name} chooses its own")
        if one.pipefusion and one.pipefusion.schedule == "folded":
            found.append("the folded schedule: stages are linear")
        return (*found, *self._decoding_not_expressed(one))

    def _decoding_not_expressed(self, one: Configuration) -> tuple[str, ...]:
        if one.vae_parallel == 1:
            return ()
        return (f"a VAE over {one.vae_parallel} ranks: {self.name} decodes as it does",)

    def configuration_flags(self, plan: ExecutionPlan) -> Flags:
        """The flags for a plan's configuration.

        Raises:
            InputError: the engine doesn't have an axis of the plan's mesh.
        """
        return [(self.words.flag(word), _typed(word, value)) for word, value in self.settings(plan)]

    def settings(
        self, plan: ExecutionPlan
    ) -> list[tuple[Word, str | int | bool | tuple[int, ...]]]:
        """What the engine is told of a plan's configuration.

        Raises:
            InputError: the engine doesn't have an axis of the plan's mesh.
        """
        self.require_axes(plan)
        has_uneven_heads = bool(_uneven_heads(plan))
        return list(self.words.said(plan.configuration, has_uneven_heads=has_uneven_heads))


def _typed(word: Word, value: str | int | bool | tuple[int, ...]) -> str:
    """A value as it is typed behind its flag; nothing for a switch that is on."""
    if value is True:
        return "true" if word.kind == "boolean" else ""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _uneven_heads(plan: ExecutionPlan) -> int:
    """How many heads there are where ulysses doesn't divide them, of a model that is known; else
    0.
    """
    known = plan.model.name in model_names()
    heads = find_model(plan.model.name).heads if known else 0
    return heads if heads % plan.mesh.ulysses else 0


XDIT = Engine(
    name="xDiT",
    version="0.7.0",
    axes=AXES,
    modes=("eager", "compile"),
    words=XDIT_WORDS,
)
SGLANG = Engine(
    name="SGLang",
    version="0.5.23",
    axes=("dp", "cfg", "ring", "ulysses"),
    modes=("eager", "compile"),
    words=SGLANG_WORDS,
)
VLLM_OMNI = Engine(
    name="vLLM-Omni",
    version="0.30.0",
    axes=("dp", "cfg", "ring", "ulysses"),
    modes=("eager", "compile"),
    words=VLLM_WORDS,
)


def export_xdit(plan: ExecutionPlan, name: str) -> Exported:
    """A shell script that starts a script of xDiT's, such as its `examples/flux_example.py`."""
    call, unknown = call_of_plan(plan)
    flags = [*XDIT.configuration_flags(plan)]
    asked = ("height", "width", "num_frames", "num_inference_steps", "guidance_scale")
    flags += [(f"--{name}", str(call[name])) for name in asked if name in call]
    head = (
        f"torchrun --nproc_per_node={plan.mesh.size} "
        '"${SCRIPT:?set SCRIPT to a script that reads xFuserArgs, as those of xDiT do}"'
    )
    return _script(XDIT, plan, name, f"{head} \\\n  --model {MODEL}", flags, unknown)


def export_sglang(plan: ExecutionPlan, name: str) -> Exported:
    """A shell script that starts SGLang's server for diffusion."""
    flags = SGLANG.configuration_flags(plan)
    return _script(SGLANG, plan, name, f"sglang serve \\\n  --model-path {MODEL}", flags)


def export_vllm_omni(plan: ExecutionPlan, name: str) -> Exported:
    """A shell script that starts vLLM-Omni's server."""
    flags = VLLM_OMNI.configuration_flags(plan)
    return _script(VLLM_OMNI, plan, name, f"vllm serve {MODEL} \\\n  --omni", flags)


def _script(
    engine: Engine,
    plan: ExecutionPlan,
    name: str,
    head: str,
    flags: Flags,
    unknown: tuple[str, ...] = (),
) -> Exported:
    """A command over several lines, with the evidence above it; it takes more words at its end.
    Values come from numbers of the plan; they are quoted all the same.
    """
    to = engine.name.lower()
    left = engine.not_expressed(plan) + unknown
    lines = [f"For {engine.name} {engine.version}.", *evidence(plan, name, to, left)]
    words = [
        f"{flag} {' '.join(map(shlex.quote, value.split()))}".rstrip() for flag, value in flags
    ]
    command = " \\\n  ".join([head, *words, '"$@"'])
    text = f"#!/usr/bin/env bash\n{commented(lines)}set -euo pipefail\n\n{command}\n"
    return Exported(to, text, left)
