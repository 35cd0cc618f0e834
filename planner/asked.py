"""What the user asked for, against what the model and the devices can do."""

from typing import Any

from ditplan.profiles.cluster import DeviceKind
from ditplan.profiles.errors import InputError
from ditplan.profiles.family import family_of
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.workload import Workload


def workload_for(
    spec: ModelSpec, device: DeviceKind, *, guidance: bool | None = None, **asked: Any
) -> Workload:
    """The model's usual workload with what the user asked for, checked against model and device."""
    changes = {name: value for name, value in asked.items() if value is not None}
    if device == "cpu" and changes.setdefault("dtype", "float32") != "float32":
        raise InputError(f"--dtype {changes['dtype']}: on CPUs the dtype is float32")
    if guidance is not None:
        if family_of(spec.transformer_class).guidance == "embedded":
            raise InputError(
                f"--{'' if guidance else 'no-'}guidance: {spec.name} makes one pass a step with or "
                "without guidance, so there is none to switch; leave it out"
            )
        changes["passes"] = max(2, spec.defaults.passes) if guidance else 1
    workload = spec.defaults.model_copy(update=changes)
    for edge in ("height", "width"):
        size, unit = getattr(workload, edge), spec.pixels_per_token
        if size % unit:
            near = max(unit, round(size / unit) * unit)
            raise InputError(
                f"--{edge} {size}: {spec.name} needs a multiple of {unit}; the nearest is {near}"
            )
    if workload.frames > 1 and spec.defaults.frames == 1:
        raise InputError(f"--frames {workload.frames}: {spec.name} makes pictures; leave it out")
    return workload


def check_quality(quality: str) -> None:
    """Refuses nonsense; every plan is exact so far, so every bound is kept."""
    if quality in ("safe", "exact", "any"):
        return
    try:
        bound = float(quality)
    except ValueError:
        bound = -1.0
    if not 0 <= bound < float("inf"):
        raise InputError(f"--quality {quality!r}: must be safe, exact, any or a number from 0 on")
