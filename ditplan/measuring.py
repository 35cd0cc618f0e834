"""What is done on real hosts: measuring a cluster and a model, tuning, and running a plan."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditplan.models import NamedModel, model_named
from ditplan.planner.cost.profile_points import grid_points
from ditplan.planner.search.policy import MeasurementPolicy, RunResult
from ditplan.planner.search.pricing import points_to_measure
from ditplan.planner.search.ranking import SearchResult, fingerprint_of
from ditplan.planner.search.sampler_names import SamplerName
from ditplan.planner.search.search import search
from ditplan.planner.task import TuneRequest, workload_for
from ditplan.profiles.backends import find_backend, require_mode, require_runtime
from ditplan.profiles.cluster import ClusterProfile, DeviceKind
from ditplan.profiles.errors import InputError, Setting
from ditplan.profiles.evidence import chosen_line
from ditplan.profiles.family import family_of
from ditplan.profiles.host import Host
from ditplan.profiles.hosts import load_hosts
from ditplan.profiles.hosts_formats import HostsFormat
from ditplan.profiles.limits import ModelLimits
from ditplan.profiles.model import ModelProfile, ModelSpec
from ditplan.profiles.plan import ExecutionPlan
from ditplan.profiles.rank_run import RankRun
from ditplan.profiles.workload import Workload
from ditplan.revalidating import revalidated
from ditplan.runtime.ranks.hosts import require_local
from ditplan.settings import workload_in
from ditplan.study import study_in

if TYPE_CHECKING:
    from ditplan.runtime.workers import Workers

SMALL_MODEL_PARAMETERS = 100_000_000

Hosts = Path | str | Sequence[Host] | None
"""A hosts file, a list of hosts as in `n[1-4]:8,m1:4`, or what they say; None is this machine."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Measuring:
    """How to measure plans: with which weights, how many of them, for how long, who chooses them,
    and where what was measured is kept.
    """

    study: Path
    weights: Path | None = None
    measure: int | None = None
    budget_s: float | None = None
    sampler: SamplerName = "planner"


def named_hosts(hosts: str | None, form: HostsFormat) -> Sequence[Host] | None:
    """The hosts of a file of some format, or of a list; None where neither is given.

    Raises:
        InputError: a wrong line or host; or a format without a file.
    """
    if hosts is None:
        if form != "ditplan":
            raise InputError(
                Setting("hosts_format", form), " says what a file is like; give ", Setting("hosts")
            )
        return None
    return load_hosts(hosts, form)


def usable_hosts(hosts: Hosts) -> Sequence[Host] | None:
    """What a hosts file says, before anything is imported that takes long.

    Raises:
        InputError: a wrong line, or a host that ranks can't be started on.
    """
    entries = load_hosts(hosts) if isinstance(hosts, str | Path) else hosts
    if entries is not None:
        require_local(entries)
    return entries


def start_workers(hosts: Hosts, gpus: int | None, needed: ExecutionPlan | None = None) -> "Workers":
    """Ranks on the hosts: as many as a plan needs, else `gpus`, else all there is room for.

    Raises:
        InputError: hosts that can't be used, or too few slots.
    """
    entries = usable_hosts(hosts)
    from ditplan.runtime.ranks.pool import count_slots
    from ditplan.runtime.workers import Workers, device_kind

    kind = device_kind()
    room = count_slots(entries, kind)
    if needed is not None:
        if room < needed.mesh.size:
            needed.require_ranks(room)
        return Workers(entries, needed.mesh.size, kind)
    if gpus is not None and gpus > room:
        raise InputError(
            Setting("gpus", gpus), f": there is room for {room} rank(s); use at most {room}"
        )
    return Workers(entries, gpus or room, kind)


def local_workload(spec: ModelSpec, settings: Mapping[str, Any]) -> Workload:
    """The workload that settings ask for on this machine's devices.

    Raises:
        InputError: the model can't do it.
    """
    from ditplan.runtime.workers import device_kind

    return workload_for(spec, device_kind(), **workload_in(settings))


def measured_cluster(hosts: Hosts, gpus: int | None, say: Say) -> ClusterProfile:
    """Measures devices, links and collectives.

    Raises:
        InputError: as `start_workers`. ClusterError: a rank failed.
    """
    with start_workers(hosts, gpus) as workers:
        return workers.profile_cluster(say)


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
        modes = find_backend("native").modes_to_search(workers.device)
        return workers.profile_model(spec, workload, grid_points(spec, workload, modes), cluster)


def tuned(
    request: TuneRequest, asked: Mapping[str, Any], hosts: Hosts, how: Measuring, say: Say
) -> SearchResult:
    """Measures what is missing, searches, and runs the best plans; keeps it all in a folder.

    Raises:
        InputError: something that was asked for can't be. ClusterError: all plans failed.
    """
    require_runtime(request.backend)
    study = study_in(how.study)
    with study.held(), start_workers(hosts, request.gpus) as workers:
        workload = workload_for(request.spec, workers.device, **asked)
        # what can't be planned is refused before anything is measured
        request.allowed(workload)
        if request.mode is not None:
            require_mode(request.backend, request.mode, workers.device)
        cluster = study.cluster(workers, say)
        task = request.task(workload, cluster)
        requests = points_to_measure(task)
        study.keep_cluster(cluster)
        task = study.with_blocks_measured(task, requests, workers, say)
        top = _usual_runs(task.spec, workers.device) if how.measure is None else how.measure

        def run(plan: ExecutionPlan) -> RunResult:
            result = workers.measure(task.spec, how.weights, plan)
            return RunResult(result.latency_s, result.memory_bytes)

        trials = MeasurementPolicy(
            run, top=top, budget_s=how.budget_s, journal=study.journal, sampler=how.sampler
        )
        found = search(task, trials, progress=say)
        ranks = found.best.configuration.mesh.size
        facts, _ = workers.facts(ranks)
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
            or the devices can't do. ClusterError: a rank failed.
    """
    with start_workers(hosts, None, needed=plan) as workers:
        limits = ModelLimits.of_spec(model.spec, family_of(model.spec.transformer_class))
        plan.require_workload(limits, workers.device)
        workers.pool()
        noise = "" if model.weights else f"; no weights for {model.spec.name}: it will be noise"
        say(f"{plan.mesh}, {plan.workload}: running on {workers.ranks} rank(s){noise}")
        if revalidate is not None:
            plan = revalidated(plan, revalidate, model, workers, say)
        say(chosen_line(plan))
        ran = workers.generate(model.spec, model.weights, plan, prompt, seed, out.absolute())
        return ran, plan


def _usual_runs(spec: ModelSpec, device: DeviceKind) -> int:
    """How many plans to run when the user doesn't say: none where one run would take minutes."""
    small = spec.transformer_parameters <= SMALL_MODEL_PARAMETERS
    return 3 if small or device == "cuda" else 0
