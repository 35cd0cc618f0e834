"""What is done on real hosts: measuring a cluster and a model, tuning, and running a plan."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditplan.models import NamedModel, model_named
from ditplan.outputs import save_files
from ditplan.planner.cost.profile_points import grid_points
from ditplan.planner.search.policy import MeasurementPolicy, RunResult
from ditplan.planner.search.pricing import points_to_measure
from ditplan.planner.search.ranking import SearchResult, fingerprint_of
from ditplan.planner.search.sampler_names import SamplerName
from ditplan.planner.search.search import search
from ditplan.planner.task import TuneRequest, workload_for
from ditplan.profiles.backends import find_backend, require_supported
from ditplan.profiles.capabilities import require_mode, require_ranks_to_run_in
from ditplan.profiles.cluster import ClusterProfile, DeviceKind
from ditplan.profiles.errors import InputError, Setting
from ditplan.profiles.evidence import chosen_line
from ditplan.profiles.family import family_of
from ditplan.profiles.host import Host
from ditplan.profiles.host_choice import HostChoice
from ditplan.profiles.hosts import load_hosts
from ditplan.profiles.job_seats import on_hosts, on_its_own
from ditplan.profiles.limits import ModelLimits
from ditplan.profiles.model import ModelProfile, ModelSpec
from ditplan.profiles.plan import ExecutionPlan
from ditplan.profiles.rank_run import RankRun
from ditplan.profiles.workload import Workload
from ditplan.revalidating import revalidated
from ditplan.runtime.ranks.environment import environment
from ditplan.runtime.ranks.preflight import require_usable
from ditplan.runtime.ranks.survey import DryRun, dry_run, room_on
from ditplan.settings import workload_in
from ditplan.study import kept_cluster, study_in

if TYPE_CHECKING:
    from ditplan.runtime.workers import Workers

SMALL_MODEL_PARAMETERS = 100_000_000

Hosts = Path | str | Sequence[Host] | HostChoice | None
"""A hosts file, a list of hosts as in `n[1-4]:8,m1:4`, what they say, or a choice among them; None
is this machine."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Measuring:
    """How to measure plans: with which weights, how many of them, for how long, who chooses them,
    where what was measured is kept, and which plan it goes on from.
    """

    study: Path
    weights: Path | None = None
    measure: int | None = None
    budget_s: float | None = None
    sampler: SamplerName = "planner"
    resume: ExecutionPlan | None = None


def choice_of(hosts: Hosts) -> HostChoice | None:
    """The hosts that a file, a list or what they say names; None is this machine.

    Raises:
        InputError: a wrong line or host.
    """
    if hosts is None or isinstance(hosts, HostChoice):
        return hosts
    return HostChoice.of(load_hosts(hosts) if isinstance(hosts, str | Path) else hosts)


def start_workers(
    hosts: Hosts, gpus: int | None, needed: ExecutionPlan | None = None, say: Say | None = None
) -> "Workers":
    """Ranks on the hosts: as many as a plan needs, else `gpus`, else all there is room for.

    Raises:
        InputError: hosts that can't be used, or too few slots. ClusterError: a host that can't be
            reached, or that differs from the others in what must be the same.
    """
    choice = choice_of(hosts)
    if choice is not None:
        require_usable(choice, environment(), say or (lambda _: None))
    room = None if choice is None else room_on(choice)
    from ditplan.runtime.workers import Workers, room_here

    room = room or room_here()
    return Workers(choice, ranks_in(room.ranks, gpus, needed), room.device, say)


def ranks_in(room: int, gpus: int | None, needed: ExecutionPlan | None) -> int:
    """How many ranks are started where there is room for so many.

    Raises:
        InputError: more are asked for.
    """
    if needed is not None:
        if room < needed.mesh.size:
            needed.require_ranks(room)
        return needed.mesh.size
    if gpus is not None and gpus > room:
        raise InputError(
            Setting("gpus", gpus), f": there is room for {room} rank(s); use at most {room}"
        )
    return gpus or room


def what_would_run(hosts: Hosts, gpus: int | None, needed: ExecutionPlan | None = None) -> DryRun:
    """What `start_workers` would start where, without any rank.

    Raises:
        InputError: as `start_workers`, or an interface that can't be used. ClusterError: hosts that
            can't be reached, or don't reach each other.
    """
    choice = choice_of(hosts) or HostChoice.of([Host("localhost")])
    return dry_run(choice, lambda room: ranks_in(room, gpus, needed))


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
        cluster = study.cluster(workers, say)
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


def run_plan(
    plan: ExecutionPlan,
    model: NamedModel,
    prompt: str,
    out: Path,
    *,
    hosts: Hosts = None,
    seed: int = 0,
    say: Say,
    revalidate: Path | None = None,
) -> tuple[RankRun, ExecutionPlan]:
    """Makes the prompt's picture with the plan; gives the plan that ran as well: with `revalidate`,
    its file, it is measured here first and saved there.

    Raises:
        InputError: hosts, devices or software that the plan isn't for, or a workload that the model
            or the devices can't do; or `out` can't be written. ClusterError: a rank failed.
    """
    backend = find_backend(plan.backend)
    require_ranks_to_run_in(backend.capabilities)
    require_supported(backend, plan.configuration, model.spec, plan.workload)
    plan, choice = _on_its_devices(plan, choice_of(hosts))
    with start_workers(choice, None, needed=plan, say=say) as workers:
        limits = ModelLimits.of_spec(model.spec, family_of(model.spec.transformer_class))
        plan.require_workload(limits, workers.device)
        workers.pool()
        noise = "" if model.weights else f"; no weights for {model.spec.name}: it will be noise"
        say(f"{plan.mesh}, {plan.workload}: running on {workers.ranks} rank(s){noise}")
        if revalidate is not None:
            plan = revalidated(plan, revalidate, model, workers, say)
        say(chosen_line(plan))
        ran, files = workers.generate(model.spec, model.weights, plan, prompt, seed, out.suffix)
        save_files(files, out)
        return ran, plan


def _on_its_devices(
    plan: ExecutionPlan, hosts: HostChoice | None
) -> tuple[ExecutionPlan, HostChoice | None]:
    """A plan for a job of its ranks alone, and where to start them: on the devices that it names,
    of this machine if no hosts are given.
    """
    if hosts is None:
        from ditplan.runtime.workers import room_here

        # ranks on CPUs have no devices to tell apart
        if room_here().device == "cpu":
            return on_its_own(plan), None
        hosts = HostChoice.of([Host("localhost")])
    return on_hosts(plan, hosts)


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
