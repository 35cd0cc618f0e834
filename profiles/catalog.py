"""What is shipped by name: models and recorded clusters."""

import difflib
import os
from pathlib import Path
from typing import Any

from ditplan.profiles.cluster import ClusterProfile
from ditplan.profiles.errors import InputError, one_line
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.quality import MeasuredQuality
from ditplan.profiles.workload import Workload

HERE = Path(__file__).parent
MODELS = HERE / "models"
CLUSTERS = HERE / "clusters"
DISTANCES = HERE / "distances"


def model_names() -> list[str]:
    """The names of the shipped models."""
    return sorted(path.stem for path in MODELS.glob("*.json"))


def cluster_names() -> list[str]:
    """The names of the recorded clusters."""
    return sorted(path.stem for path in CLUSTERS.glob("*.json"))


def find_model(name: str) -> ModelSpec:
    """The spec of a shipped model, by its name in any case.

    Raises:
        InputError: no such model; the message gives the nearest name.
    """
    return ModelSpec.load(MODELS / f"{_known(name.lower(), model_names(), 'model')}.json")


def find_cluster(name_or_file: str) -> ClusterProfile:
    """A recorded cluster by name, or one from a file.

    Raises:
        InputError: neither; the message gives the nearest name.
    """
    name, names = name_or_file.lower(), cluster_names()
    if name not in names and (os.path.exists(name_or_file) or name.endswith(".json")):
        return ClusterProfile.load(name_or_file)
    return ClusterProfile.load(CLUSTERS / f"{_known(name, names, 'cluster')}.json")


def known_quality(spec: ModelSpec, workload: Workload) -> MeasuredQuality | None:
    """What is recorded of a shipped model's approximate pictures at a workload, if anything is."""
    path = DISTANCES / f"{spec.name}.json"
    if not path.is_file():
        return None
    found = MeasuredQuality.load(path)
    return found if found.holds_for(spec.config_hash, workload) else None


def shipped_config(name: str, config_hash: str) -> dict[str, Any] | None:
    """The config of a shipped model's transformer, if it is the one with this digest."""
    if name not in model_names():
        return None
    spec = find_model(name)
    return spec.config if spec.config_hash == config_hash else None


def shipped_weights(name: str) -> Path | None:
    """The folder with a shipped model's weights, if they are shipped."""
    folder = MODELS / name
    return folder if (folder / "model_index.json").is_file() else None


def _known(name: str, names: list[str], what: str) -> str:
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}? " if near else ""
    given = one_line(repr(name), 60)
    raise InputError(
        f"unknown {what} {given}: {hint}Known: {', '.join(names)}; a path works as well"
    )
