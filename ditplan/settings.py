"""What can be asked of a plan, by name: declared once, and checked alike from Python and from the
command line.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from ditplan.planner.objectives import ObjectiveName
from ditplan.profiles.backends import find_backend
from ditplan.profiles.bounds import (
    MOST_SECONDS,
    Batch,
    Degree,
    Frames,
    Patches,
    Pixels,
    Steps,
    TextSize,
)
from ditplan.profiles.capabilities import SPLIT_VAES
from ditplan.profiles.errors import InputError, Setting
from ditplan.profiles.mesh import AXES
from ditplan.profiles.model import Mode, ModelSpec
from ditplan.profiles.record import shortened
from ditplan.profiles.workload import Dtype

Seconds = Annotated[float, Field(ge=0, le=MOST_SECONDS, allow_inf_nan=False)]


class WorkloadSettings(TypedDict, total=False):
    """What is asked of the model; what is left out or None is the model's usual."""

    height: Pixels | None
    width: Pixels | None
    frames: Frames | None
    steps: Steps | None
    text_tokens: TextSize | None
    guidance: bool | None
    batch: Batch | None
    dtype: Dtype | None


class MeshSettings(TypedDict, total=False):
    """Degrees, PipeFusion's settings and the mode; what is left out or None is left to the search,
    or to `simulate` has degree 1. `vae_parallel` is 1 where it is left out.
    """

    dp: Degree | None
    cfg: Degree | None
    pipefusion: Degree | None
    ring: Degree | None
    ulysses: Degree | None
    patches: Patches | None
    warmup_steps: Steps | None
    mode: Mode | None
    vae_parallel: Degree | None


class SearchSettings(MeshSettings, total=False):
    """What a search may choose from, and what it makes best.

    `quality` is "safe", "exact", "any" or the largest relative L2 distance of the final latents.
    `max_latency_s` bounds a call's denoising. `weights` is a folder of the model's real weights.
    `prompt_file` has a prompt a line, from which the lengths of texts are taken.
    """

    gpus: Degree | None
    quality: str
    backend: str
    objective: ObjectiveName
    max_latency_s: Seconds | None
    weights: Path | str | None
    prompt_file: Path | str | None


class PlanSettings(SearchSettings, WorkloadSettings, total=False):
    """All that a search for one workload takes."""


class SimulateSettings(MeshSettings, WorkloadSettings, total=False):
    """All that pricing one configuration takes."""

    gpus: Degree | None
    backend: str


S = TypeVar("S", bound=Mapping[str, Any])


def checked(kind: type[S], given: Mapping[str, Any]) -> S:
    """The settings that were given, without those that are None.

    Raises:
        TypeError: one that there isn't. InputError: one that can't have the value it has.
    """
    names = kind.__annotations__
    if unknown := sorted(given.keys() - names.keys()):
        raise TypeError(f"there is no setting {unknown[0]!r}; there are {', '.join(names)}")
    said = {name: value for name, value in given.items() if value is not None}
    try:
        return TypeAdapter(kind).validate_python(said)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        wrong = Setting(str(first["loc"][0]), shortened(first["input"]))
        raise InputError(wrong, f": {first['msg'].lower()}") from None


def degrees_in(settings: Mapping[str, Any]) -> dict[str, int]:
    """The degrees that were given."""
    return {axis: settings[axis] for axis in AXES if axis in settings}


def vae_parallel_in(settings: Mapping[str, Any], spec: ModelSpec) -> int:
    """How many ranks shall decode a picture together.

    Raises:
        InputError: more than one, and the backend or the model's VAE can't be split.
    """
    degree: int = settings.get("vae_parallel", 1)
    backend = find_backend(settings.get("backend", "native"))
    asked = Setting("vae_parallel", degree)
    if degree > 1 and not backend.capabilities.splits_vae:
        raise InputError(asked, f": backend {backend.name} decodes on one rank; leave it out")
    if degree > 1 and spec.vae_class not in SPLIT_VAES:
        raise InputError(
            asked, f": the VAE of {spec.name}, a {spec.vae_class}, can't be split; leave it out"
        )
    return degree


def workload_in(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What was given of the workload."""
    names = WorkloadSettings.__annotations__
    return {name: value for name, value in settings.items() if name in names}
