"""What is done on real hosts before there is a plan: measuring a cluster and a model, tuning."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ditplan.models import model_named
from ditplan.planner.cost.profile_points import grid_points
from ditplan.planner.search.policy import MeasurementPolicy, RunResult
from ditplan.planner.search.pricing import points_to_measure
from ditplan.planner.search.ranking import SearchResult, fingerprint_of
from ditplan.planner.search.sampler_names import SamplerName
from ditplan.planner.search.search import search
from ditplan.planner.task import TuneRequest, workload_for
from ditplan.profiles.backends import find_backend
from ditplan.profiles.capabilities import require_mode, require_ranks_to_run_in
from ditplan.profiles.cluster import ClusterProfile, DeviceKind
from ditplan.profiles.family import family_of
from ditplan.profiles.limits import ModelLimits
from ditplan.profiles.model import ModelProfile, ModelSpec
from ditplan.profiles.plan import ExecutionPlan
from ditplan.profiles.workload import Workload
from ditplan.running import Hosts, Say, start_workers
from ditplan.settings import workload_in
from ditplan.study import kept_cluster, study_in

SMALL_MODEL_PARAMETERS = 100_000_000


@dataclass(frozen=True)
class Measuring:
    """How to measure plans: with which weights, how many of them, for how long, who chooses them,
    where what was measured is kept, and which plan it goes on from. With `refresh` the cluster is
    measured anew, whatever is kept of it.
    """

    study: Path
    weights: Path | None = None
    measure: int | None = None
    budget_s: float | None = None
    sampler: SamplerName = "planner"
    resume: ExecutionPlan | None = None
    refresh: bool = False


def local_workload(spec: ModelSpec, settings: Mapping[str, Any]) -> Workload:
    """The workload that settings ask for on this machine's devices.

    Raises:
        InputError: the model can't do it.
    """
    from ditplan.runtime.workers import device_kind

    return workload_for(spec, device_kind(), **workload_in(settings))


def measured_cluster(
    hosts: Hosts,
    gpus: int | None,
    say: Say,
    *,
    budget_s: float | None = None,
    kept: Path | None = None,
) -> ClusterProfile:
    """Measures devices, links and collectives, for about `budget_s` if that is given; or takes what
    a file says that was `kept` of the same hosts, devices and software.

    Raises:
        InputError: as `start_workers`; a kept file that is no cluster's. ClusterError: a rank
            failed.
    """
    with start_workers(hosts, gpus, say=say) as workers:
        found = None if kept is None else kept_cluster(kept, workers)
        if kept is not None and found is not None:
            say(f"{kept}: as measured on {found.measured_on}; devices and software are the same")
            return found
        return workers.profile_cluster(say, budget_s)


def measured_blocks(
    model: str | Path, gpus: int | None, asked: Mapping[str, Any], say: Say
) -> ModelProfile:
    """Measures a model's blocks on this machine, at a grid of shapes up to a workload's.

    Raises:
        InputError: no such model, or a workload that it can't do. ClusterError: a rank failed.
    """
    spec = model_named(model).spec
    with start_workers(None, gpus or 1) as workers:
        workload = workload_for(spec, workers.device, **asked)
        cluster = workers.profile_cluster(say)
        modes = find_backend("native").capabilities.modes_to_search(workers.device)
        return workers.profile_model(spec, workload, grid_points(spec, workload, modes), cluster)


def tuned(
    request: TuneRequest, asked: Mapping[str, Any], hosts: Hosts, how: Measuring, say: Say
) -> SearchResult:
    """Measures what is missing, searches, and runs the best plans; keeps it all in a folder.

    Raises:
        InputError: something that was asked for can't be. ClusterError: all plans failed.
    """
    require_ranks_to_run_in(request.backend.capabilities)
    study = study_in(how.study)
    with study.held(), start_workers(hosts, request.gpus, say=say) as workers:
        workload = _workload(request.spec, workers.device, asked, how.resume)
        # what can't be planned is refused before anything is measured
        request.allowed(workload)
        if request.mode is not None:
            require_mode(request.backend.capabilities, request.mode, workers.device)
        cluster = study.cluster(workers, say, refresh=how.refresh)
        task = request.task(workload, cluster)
        requests = points_to_measure(task)
        study.keep_cluster(cluster)
        task = study.with_blocks_measured(task, requests, workers, say)
        top = _usual_runs(task.spec, workers.device) if how.measure is None else how.measure
        if how.resume is not None:
            top = max(1, top)

        def run(plan: ExecutionPlan) -> RunResult:
            result = workers.measure(task.spec, how.weights, plan)
            return RunResult(result.latency_s, result.memory_bytes)

        trials = MeasurementPolicy(
            run,
            top=top,
            budget_s=how.budget_s,
            journal=study.journal,
            sampler=how.sampler,
            resume=how.resume,
        )
        found = search(task, trials, progress=say)
        ranks = found.best.configuration.ranks
        facts, _ = workers.facts(ranks, timed=True)
        known = fingerprint_of(task.cluster, ranks)
        return replace(found, fingerprint=known.as_found(facts, known.link_kinds))


def _workload(
    spec: ModelSpec, device: DeviceKind, asked: Mapping[str, Any], resume: ExecutionPlan | None
) -> Workload:
    if resume is None:
        return workload_for(spec, device, **asked)
    limits = ModelLimits.of_spec(spec, family_of(spec.transformer_class))
    resume.require_workload(limits, device)
    return resume.workload


def _usual_runs(spec: ModelSpec, device: DeviceKind) -> int:
    """How many plans to run when the user doesn't say: none where one run would take minutes."""
    small = spec.transformer_parameters <= SMALL_MODEL_PARAMETERS
    return 3 if small or device == "cuda" else 0
