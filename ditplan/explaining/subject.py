"""A saved plan with all that explains it: its cluster, what was measured, and all other plans."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from ditplan.checking.saved_plans import cluster_named_by
from ditplan.models import model_of_plan
from ditplan.planner.cost_model import CostModel
from ditplan.planner.network.topology import Topology
from ditplan.planner.search.pricing import cost_model_of, priced_as_is
from ditplan.planner.search.ranking import PricedCandidate, SearchResult
from ditplan.planner.search.search import search
from ditplan.planner.task import Task, TuneRequest
from ditplan.profiles.backends import find_backend
from ditplan.profiles.catalog import find_cluster
from ditplan.profiles.cluster import ClusterProfile
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.errors import InputError, Setting
from ditplan.profiles.files import path_text
from ditplan.profiles.model import ModelProfile, ModelSpec
from ditplan.profiles.plan import ExecutionPlan
from ditplan.profiles.workload import Workload
from ditplan.study import study_in


@dataclass(frozen=True)
class Subject:
    """A plan, and the ranking that it is explained by.

    `model_name`, `cluster` and `profile` are what the command line calls the model, the cluster and
    the file of the model's measured blocks, None where nothing was measured. `request` is what was
    asked of `tune`, as far as the plan says.
    """

    path: Path
    plan: ExecutionPlan
    model_name: str
    cluster: str
    profile: str | None
    request: TuneRequest
    task: Task
    found: SearchResult

    @cached_property
    def model(self) -> CostModel:
        """What prices the plan and its rivals."""
        return cost_model_of(self.task, Topology(self.task.cluster))

    @cached_property
    def own(self) -> PricedCandidate:
        """The plan as it is priced today, with what was measured of it."""
        priced = priced_as_is(self.task, self.model, self.plan.configuration)
        return replace(priced, measurement=self.plan.measurement)

    @cached_property
    def fitting(self) -> tuple[PricedCandidate, ...]:
        """All plans that fit, by predicted latency."""
        fits = (one for one in self.found.ranked if not one.too_big)
        return tuple(sorted(fits, key=lambda one: one.prediction.latency_s))

    @cached_property
    def one_gpu(self) -> PricedCandidate | None:
        """The fastest exact plan of one device; None where none holds the model."""
        return next(
            (r for r in self.fitting if r.configuration.mesh.size == 1 and r.quality.exact), None
        )

    @cached_property
    def baseline(self) -> PricedCandidate | None:
        """The rule of thumb, in the mode in which it is fastest."""
        return next((r for r in self.fitting if r.is_baseline), None)

    def measured_s(self, configuration: Configuration) -> float | None:
        """What a configuration took where the plan was made; None if it wasn't run there."""
        plan = self.plan
        if configuration == plan.configuration:
            return plan.measurement.latency_s if plan.measurement else None
        known = {other.configuration: other.measured_s for other in plan.runner_ups}
        return known.get(configuration)

    def task_at(self, workload: Workload, cluster: ClusterProfile | None = None) -> Task:
        """The same task for another workload, on another cluster."""
        task = self.request.task(workload, cluster or self.task.cluster)
        return replace(task, profile=self.task.profile)


def subject_of(
    path: Path,
    *,
    cluster: str | None = None,
    gpus: int | None = None,
    weights: Path | None = None,
) -> Subject:
    """The plan in a file, ranked among all others of today.

    `cluster` is where it holds, if that is neither shipped nor beside the plan; `gpus` the most
    that a plan may use, else as many as the plan or one of its runner-ups has. `weights` is the
    model's folder, where the model isn't shipped.

    Raises:
        InputError: the plan or its cluster can't be read, or it can't be priced there.
    """
    plan = ExecutionPlan.load(path)
    named = model_of_plan(plan, path, weights)
    where = cluster or cluster_named_by(plan, path)
    if where is None:
        raise InputError(
            f"{path_text(path)}: nothing is known of its cluster {plan.fingerprint.cluster}; name "
            "its file: ",
            Setting("cluster", "FILE"),
        )
    known = find_cluster(where)
    asked = max([plan.mesh.size, *(one.configuration.mesh.size for one in plan.runner_ups)])
    if max(plan.configuration.placement) >= len(known.devices):
        raise InputError(
            f"{path_text(path)}: the plan uses rank {max(plan.configuration.placement)}, "
            f"{where} has {len(known.devices)} devices; name the cluster that it is for: ",
            Setting("cluster", "FILE"),
        )
    request = TuneRequest(
        named.spec,
        known=named.known_quality,
        quality=_quality_asked(plan),
        gpus=gpus or min(asked, len(known.devices)),
        mode=plan.configuration.mode if plan.fallback == "refuse" else None,
        backend=find_backend(plan.backend),
    )
    task = request.task(plan.workload, known)
    profile = _profile_for(plan, task, path)
    if profile is not None:
        task = replace(task, profile=ModelProfile.load(profile))
    name = None if profile is None else str(profile)
    called = plan.model.name if weights is None else str(weights)
    return Subject(path, plan, called, where, name, request, task, search(task))


def _quality_asked(plan: ExecutionPlan) -> str:
    """What `--quality` must have been at least, by what the plan and its runner-ups are."""
    configurations = [plan.configuration, *(one.configuration for one in plan.runner_ups)]
    if any(one.step_cache for one in configurations):
        return "any"
    return "safe" if any(one.pipefusion for one in configurations) else "exact"


def _profile_for(plan: ExecutionPlan, task: Task, path: Path) -> Path | None:
    """The file of measured blocks in the plan's study by which it costs just what the plan says;
    None if it costs so without any, or by none.
    """
    if plan.prediction is None:
        return None
    folder = study_in(path.with_suffix(".study")).folder
    files = sorted(folder.glob(f"{glob_name(task.spec)}-*.json")) if folder.is_dir() else []
    missed: dict[Path | None, float] = {}
    for file in [None, *files]:
        profile = None if file is None else ModelProfile.load(file)
        if profile is not None and not _is_for(profile, task):
            continue
        measured = replace(task, profile=profile)
        model = cost_model_of(measured, Topology(task.cluster))
        now_s = priced_as_is(measured, model, plan.configuration).prediction.latency_s
        missed[file] = abs(now_s / plan.prediction.latency_s - 1)
    return min(missed, key=lambda file: missed[file])


def glob_name(spec: ModelSpec) -> str:
    """A model's name, as its measured blocks are called in a study, with nothing that globs."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in spec.name)


def _is_for(profile: ModelProfile, task: Task) -> bool:
    devices: Sequence[str] = [device.name for device in task.cluster.devices]
    return profile.config_hash == task.spec.config_hash and profile.device in devices
