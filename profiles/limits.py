"""What a model and its devices can be asked for: one check of a workload and of a plan's numbers,
for `tune`, `simulate`, `run`, `parallelize` and whoever reads a plan.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from ditplan.profiles.configuration import Configuration
from ditplan.profiles.errors import Sentence, Setting
from ditplan.profiles.family import ModelFamily
from ditplan.profiles.workload import Workload

if TYPE_CHECKING:
    from ditplan.profiles.cluster import DeviceKind
    from ditplan.profiles.model import ModelSpec

MOST_GUIDED_PASSES = 2
"""With guidance, where the model's usual workload doesn't have more."""


@dataclass(frozen=True)
class ModelLimits:
    """What of a model bounds its workloads.

    `most_passes` is 1 where guidance takes no pass of its own. `pixels_per_token` is None where
    only the model's family is known.
    """

    name: str
    makes_videos: bool
    most_passes: int
    pixels_per_token: int | None = None

    @classmethod
    def of_family(cls, name: str, family: ModelFamily, pixels_per_token: int | None = None) -> Self:
        """Those of a model of which no more is known than its family."""
        return cls(
            name=name,
            makes_videos=any(usual.frames > 1 for usual in family.usual),
            most_passes=1 if family.guidance == "embedded" else MOST_GUIDED_PASSES,
            pixels_per_token=pixels_per_token,
        )

    @classmethod
    def of_spec(cls, spec: "ModelSpec", family: ModelFamily) -> Self:
        """Those of a model whose spec is known."""
        usual = spec.defaults.passes
        return cls(
            name=spec.name,
            makes_videos=spec.defaults.frames > 1,
            most_passes=1 if family.guidance == "embedded" else max(MOST_GUIDED_PASSES, usual),
            pixels_per_token=spec.pixels_per_token,
        )


def workload_fault(limits: ModelLimits, workload: Workload) -> Sentence | None:
    """What of a workload a model can't do, in one sentence; None if it can do it."""
    unit = limits.pixels_per_token or 1
    for edge in ("height", "width"):
        size = getattr(workload, edge)
        if size % unit:
            near = max(unit, round(size / unit) * unit)
            return Sentence(
                Setting(edge, size),
                f": {limits.name} needs a multiple of {unit}; the nearest is {near}",
            )
    if workload.frames > 1 and not limits.makes_videos:
        frames = Setting("frames", workload.frames)
        return Sentence(frames, f": {limits.name} makes pictures; leave it out")
    passes = Setting("passes", workload.passes)
    if workload.passes > 1 == limits.most_passes:
        return Sentence(
            passes, f": {limits.name} makes one pass a step with or without guidance; use 1"
        )
    if workload.passes > limits.most_passes:
        most = limits.most_passes
        return Sentence(passes, f": {limits.name} makes at most {most} passes a step; use 1 or 2")
    if not workload.text_tokens:
        text = Setting("text_tokens", 0)
        return Sentence(text, f": {limits.name} attends to a text; use 1 or more")
    return None


def dtype_fault(workload: Workload, device: "DeviceKind") -> Sentence | None:
    """Why a workload can't run on such devices, in one sentence; None if it can."""
    if device == "cpu" and workload.dtype != "float32":
        return Sentence(Setting("dtype", workload.dtype), ": on CPUs the dtype is float32")
    return None


def warmup_excess(warmup_steps: int, workload: Workload) -> Sentence | None:
    """What is wrong with so many warm-up steps, in one sentence; None if nothing is."""
    if 1 <= warmup_steps <= workload.steps:
        return None
    asked = Setting("warmup_steps", warmup_steps)
    return Sentence(asked, f": there are {workload.steps} steps; use 1 to {workload.steps}")


def configuration_fault(one: Configuration, workload: Workload) -> Sentence | None:
    """What of a configuration a workload has no room for, in one sentence; None if it has."""
    return warmup_excess(one.pipefusion.warmup_steps, workload) if one.pipefusion else None
