"""The folder beside a plan that keeps what was measured for it."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ditplan.lock import held
from ditplan.planner.search.journal import recorded_runs
from ditplan.planner.search.storage import task_name
from ditplan.planner.task import Task
from ditplan.profiles.cluster import ClusterProfile
from ditplan.profiles.errors import InputError
from ditplan.profiles.fingerprint import is_same_code
from ditplan.profiles.model import ModelProfile, PointRequest
from ditplan.profiles.record import Record

if TYPE_CHECKING:
    from ditplan.runtime.workers import Workers


R = TypeVar("R", bound=Record)
REMEDY = "delete it, and tune again: it is measured anew"


@dataclass(frozen=True)
class Study:
    """What a tune measures and a later one of the same goes on from: the cluster, the blocks of the
    model, and the runs of plans.
    """

    folder: Path

    @property
    def journal(self) -> Path:
        """The file of the Optuna study."""
        return self.folder / "journal.log"

    @property
    def cluster_file(self) -> Path:
        """The file of the cluster."""
        return self.folder / "cluster.json"

    def exists(self) -> bool:
        """Whether anything was measured."""
        return self.cluster_file.exists() or self.journal.exists()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other processes out of the folder.

        Raises:
            InputError: one is in it.
        """
        with held(self.folder):
            yield

    def contents(self) -> dict[str, Any]:
        """What was measured: the cluster, models' blocks, and runs of plans.

        Raises:
            InputError: a file is damaged.
        """
        files = sorted(self.folder.glob("*.json"))
        profiles = [_loaded(ModelProfile, path) for path in files if path != self.cluster_file]
        cluster = _loaded(ClusterProfile, self.cluster_file) if self.cluster_file in files else None
        return {
            "folder": str(self.folder),
            "cluster": cluster.name if cluster else None,
            "devices": [device.name for device in cluster.devices] if cluster else [],
            "profiles": [
                {"model": found.model, "device": found.device, "points": len(found.points)}
                for found in profiles
            ],
            "runs": [asdict(run) for run in recorded_runs(self.journal)],
        }

    def cluster(
        self, workers: "Workers", say: Callable[[str], None], *, refresh: bool = False
    ) -> ClusterProfile:
        """The cluster as measured before for the same devices and software, or measured now, as it
        is in any case with `refresh`.
        """
        path = self.cluster_file
        if not refresh and (saved := kept_cluster(path, workers)):
            say(f"cluster: as measured on {saved.measured_on} (refresh to measure anew)")
            return saved
        cluster = workers.profile_cluster(say)
        for warning in cluster.warnings:
            say(f"warning: {warning}")
        return cluster

    def keep_cluster(self, cluster: ClusterProfile) -> None:
        """Saves the cluster in the folder."""
        cluster.save(self.cluster_file)

    def with_blocks_measured(
        self,
        task: Task,
        requests: Sequence[PointRequest],
        workers: "Workers",
        say: Callable[[str], None],
    ) -> Task:
        """The task with the model's blocks measured: before, for this same task, or now."""
        path = self.folder / f"{task_name(task)}.json"
        if path.exists():
            profile = _loaded(ModelProfile, path)
            say(f"model: as measured on {profile.measured_on} (delete {path} to measure anew)")
        else:
            say(f"measuring {task.spec.name}'s blocks at {len(requests)} shapes")
            profile = workers.profile_model(task.spec, task.workload, requests, task.cluster)
            profile.save(path)
        _say_what_is_known(profile, requests, say)
        return replace(task, profile=profile)


def kept_cluster(path: Path, workers: "Workers") -> ClusterProfile | None:
    """A cluster that was measured of these devices with this software; None where the file is of
    others, or there is none.

    Raises:
        InputError: the file is damaged.
    """
    if not path.exists():
        return None
    saved = _loaded(ClusterProfile, path)
    facts, _ = workers.facts(range(workers.ranks), timed=False)
    devices = [device.name for device in saved.devices]
    # in their order, which is that of the ranks
    hosts = [(host.name, len(host.devices)) for host in saved.hosts]
    is_alike = devices == [one.device for one in facts] and hosts == [*workers.hosts().items()]
    return saved if is_alike and is_same_code(saved.software, facts[0].software) else None


def study_in(folder: Path) -> Study:
    """The study in a folder, which needn't exist.

    Raises:
        InputError: a file lies in its place.
    """
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise InputError(f"{folder}: measurements go to a folder of this name; rename the file")
    return Study(folder)


def _loaded(kind: type[R], path: Path) -> R:
    return kind.load(path, remedy=REMEDY)


def _say_what_is_known(
    profile: ModelProfile, requests: Sequence[PointRequest], say: Callable[[str], None]
) -> None:
    """Which costs come from measurements of this model on this device, and which are computed."""
    sizes = {
        (p.batch, p.image_tokens, p.text_tokens, p.key_tokens)
        for p in profile.points
        if p.part == "outside"
    }
    wanted = {
        (r.batch, r.image_share, r.text_share, r.image_tokens + r.text_tokens) for r in requests
    }
    left_out = sorted(wanted - sizes)
    parts = sorted({point.part for point in profile.points})
    modes = ", ".join(dict.fromkeys(point.mode for point in profile.points))
    say(f"measured: {', '.join(parts)}; blocks at {len(sizes)} of {len(wanted)} shapes ({modes})")
    if left_out:
        shapes = ", ".join(f"{batch} x {image}+{text} tokens" for batch, image, text, _ in left_out)
        say(f"computed, since it takes this device too long to measure: blocks at {shapes}")
    if "vae_decode" not in parts:
        say("computed, since it takes this device too long to measure: VAE decoding")
