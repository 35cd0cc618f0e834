"""What users name as a model: a shipped one, or a folder with a pipeline saved by diffusers."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ditplan.profiles.catalog import find_model, known_quality, shipped_weights
from ditplan.profiles.errors import InputError, Setting
from ditplan.profiles.fingerprint import config_changes
from ditplan.profiles.hub_ids import shipped_as
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import ExecutionPlan
from ditplan.profiles.quality import MeasuredQuality
from ditplan.profiles.workload import Workload


@dataclass(frozen=True)
class NamedModel:
    """A model's spec, the folder of its weights if there are any, and whether it is shipped."""

    spec: ModelSpec
    weights: Path | None
    is_shipped: bool

    def known_quality(self, workload: Workload) -> MeasuredQuality | None:
        """What was measured of approximate pictures, which holds for the shipped weights alone."""
        return known_quality(self.spec, workload) if self.is_shipped else None


def model_named(name: str | Path) -> NamedModel:
    """A shipped model by its name or hub id, or the model in a folder.

    Raises:
        InputError: none of them, or a folder whose pipeline isn't known.
    """
    # unlike pathlib's, os.path's answer for a name that no file can have is no
    if not os.path.isdir(name):
        shipped = shipped_as(str(name)) or str(name)
        return NamedModel(find_model(shipped), shipped_weights(shipped.lower()), True)
    folder = Path(name)
    return NamedModel(_inspected(folder, folder.resolve().name), folder, False)


def model_of_plan(plan: ExecutionPlan, path: Path, weights: Path | None) -> NamedModel:
    """The model that a plan, read from `path`, is for, with its own weights or those of a folder.

    Raises:
        InputError: the plan is for another model, or for one that isn't shipped.
    """
    if weights is not None:
        found = NamedModel(_inspected(weights, plan.model.name), weights, False)
    else:
        try:
            found = model_named(find_model(plan.model.name).name)
        except InputError:
            raise InputError(
                f"{path}: {plan.model.name} is not a shipped model; give its folder: ",
                Setting("weights", "DIR"),
            ) from None
    spec = found.spec
    plan.require_model(spec.transformer_class, spec.config_hash, spec.config, _usual(found))
    return found


def check_weights(weights: Path, spec: ModelSpec) -> None:
    """Refuses a folder whose transformer is another one than the model's.

    Raises:
        InputError: says both.
    """
    found = _inspected(weights, spec.name)
    usual = _usual(NamedModel(found, weights, False))
    is_alike = found.transformer_class == spec.transformer_class
    if not is_alike or config_changes(spec.config, found.config, usual):
        raise InputError(
            Setting("weights", weights),
            f": this {found.transformer_class} has config {found.config_hash}, {spec.name} has "
            f"{spec.config_hash}; give {spec.name}'s folder, or ",
            Setting("model", weights),
        )


def _usual(model: NamedModel) -> dict[str, Any]:
    """What the class of a folder's transformer takes for what its config doesn't name."""
    if model.is_shipped:
        return {}
    from ditplan.runtime.models.inspection import diffusers_class, usual_config

    return usual_config(diffusers_class(model.spec.transformer_class))


def _inspected(folder: Path, name: str) -> ModelSpec:
    # it brings torch and diffusers, which shipped models do without
    from ditplan.runtime.models.inspection import inspect_folder

    return inspect_folder(folder, name)
