"""Planning from Python: what `tune` and `simulate` do, as functions that return results."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack, get_args

from rich.table import Table

from ditplan.measuring import Measuring, tuned
from ditplan.models import NamedModel, check_weights, model_named
from ditplan.planner.objectives import FASTEST, objective_for
from ditplan.planner.report import (
    approximation_text,
    best_text,
    mix_json,
    mix_table,
    mix_text,
    notes_on,
    parts_text,
    ranking_table,
    shares_text,
    simulate_json,
    tune_json,
)
from ditplan.planner.search.pricing import price_one, timeline_of
from ditplan.planner.search.ranking import PricedCandidate, SearchResult
from ditplan.planner.search.sampler_names import SamplerName
from ditplan.planner.search.search import search
from ditplan.planner.search.seating import worth
from ditplan.planner.search.workload_mix import Mixed, load_mix, plan_mix
from ditplan.planner.simulation.chrome_trace import chrome_trace
from ditplan.planner.simulation.timeline import Timeline
from ditplan.planner.task import Task, TuneRequest, check_quality, workload_for
from ditplan.profiles.backends import find_backend
from ditplan.profiles.book import Otherwise, PlanBook
from ditplan.profiles.catalog import find_cluster
from ditplan.profiles.cluster import ClusterProfile
from ditplan.profiles.errors import Command, InputError, Setting
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import Mode, ModelProfile
from ditplan.profiles.plan import ExecutionPlan
from ditplan.profiles.record import write_atomically
from ditplan.profiles.workload import Workload
from ditplan.prompts import longest_text, text_lengths
from ditplan.running import Hosts, Say, choice_of
from ditplan.settings import (
    PlanSettings,
    SimulateSettings,
    checked,
    degrees_in,
    vae_parallel_in,
    workload_in,
)

Cluster = ClusterProfile | Path | str
"""A cluster, the file of one, or the name of a recorded one."""


@dataclass(frozen=True)
class PlanResult:
    """The outcome of a search for one workload."""

    found: SearchResult

    @cached_property
    def plan(self) -> ExecutionPlan:
        """The best plan, to save or to run."""
        return self.found.to_plan()

    def table(self, rows: int = 12) -> Table:
        """The first candidates and why they lost, for rich and for notebooks."""
        return ranking_table(self.found, rows)

    def to_json(self) -> dict[str, object]:
        """All candidates, as `tune` prints them."""
        return tune_json(self.found)

    def __str__(self) -> str:
        """The best plan, where its time goes, and what to know before it is started."""
        prediction, measured = self.found.best.prediction, self.found.best.measurement
        seconds = f"measured {measured.latency_s:.4g} s, " if measured else ""
        lines = [
            best_text(self.found),
            f"{seconds}predicted {prediction.latency_s:.4g} s: {parts_text(prediction)}",
            *(f"note: {note}" for note in notes_on(self.found)),
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class BookResult:
    """The outcome of a search for a mix of workloads."""

    mixed: Mixed

    @cached_property
    def plan(self) -> PlanBook:
        """The best plan of each workload, to save."""
        return self.mixed.to_book()

    def table(self) -> Table:
        """What each workload takes with its own plan, and with one mesh for all."""
        return mix_table(self.mixed)

    def to_json(self) -> dict[str, object]:
        """All workloads, as `tune` prints them."""
        return mix_json(self.mixed)

    def __str__(self) -> str:
        return mix_text(self.mixed)


@dataclass(frozen=True)
class SimulateResult:
    """What one configuration costs, in the fastest of `modes`."""

    task: Task
    priced: PricedCandidate
    modes: tuple[Mode, ...]

    @cached_property
    def timeline(self) -> Timeline:
        """When each rank and each link does what."""
        return timeline_of(self.task, self.priced.configuration)

    @property
    def title(self) -> str:
        """Model, workload, mesh and cluster, in a line."""
        spec, workload, cluster = self.task.spec, self.task.workload, self.task.cluster
        return f"{spec.name}: {workload}, {self.priced.configuration.mesh} on {cluster.name}"

    def save_trace(self, path: Path | str) -> Path:
        """Writes the timeline for https://ui.perfetto.dev."""
        text = chrome_trace(self.timeline, self.priced.configuration, self.title)
        return write_atomically(Path(path), text)

    def to_json(self) -> dict[str, object]:
        """What `simulate` prints."""
        return simulate_json(self.task, self.priced) | {"modes_compared": list(self.modes)}

    def __str__(self) -> str:
        prediction, candidate, task = self.priced.prediction, self.priced.configuration, self.task
        low_s, high_s = prediction.interval_s
        patched = f", {candidate.pipefusion}" if candidate.pipefusion else ""
        fastest = f" (fastest of {', '.join(self.modes)})" if len(self.modes) > 1 else ""
        lines = [
            f"{task.spec.name}: {task.workload}, {candidate.mesh}{patched} on {task.cluster.name}",
            f"mode {candidate.mode}{fastest}, backend {task.backend.name}",
            f"latency {prediction.latency_s:.4g} s (90% interval {low_s:.3g} to {high_s:.3g} s)",
        ]
        for part, seconds in prediction.parts.items():
            share = 100 * seconds / prediction.latency_s
            lines.append(f"  {part:<12} {seconds:8.4f} s  {share:5.1f}%")
        if shared := shares_text(self.priced, task.spec, task.workload):
            lines.append(shared)
        shortage = self.priced.too_big or self.priced.warning
        fits = f"does not fit: {shortage}" if shortage else "fits"
        lines.append(f"memory {prediction.memory_bytes / 1e9:.1f} GB a GPU, {fits}")
        lines.append(approximation_text(self.priced.quality) or "exact")
        lines.append(f"prices are {prediction.source}")
        return "\n".join(lines)


def plan(
    model: str | Path,
    cluster: Cluster | None = None,
    *,
    hosts: Hosts = None,
    measure: int | None = None,
    sampler: SamplerName = "planner",
    budget_s: float | None = None,
    study: Path | str = "plan.study",
    resume: ExecutionPlan | None = None,
    refresh: bool = False,
    progress: Say | None = None,
    **settings: Unpack[PlanSettings],
) -> PlanResult:
    """Finds a model's fastest plan: on paper for a `cluster`, or by measuring on `hosts`.

    Args:
        model: a shipped model's name, or a folder saved by diffusers.
        cluster: plans on paper for this one.
        hosts: a hosts file or what it says, this machine if None: what is missing is measured, and
            the best plans are run.
        measure: how many plans to run; 3 if None, or none for a full-size model on CPUs.
        sampler: who chooses these plans: the planner, or one of Optuna's samplers, which know only
            what was run and make latency best.
        budget_s: seconds after which no new run is started.
        study: the folder that keeps what is measured; a search of the same goes on from there.
        resume: a plan to go on from: it is run again for its own workload, and beside it only what
            could now be faster.
        refresh: measures the cluster anew, even if devices and software are the same.
        progress: is told what is being done.

    Raises:
        InputError: something asked for can't be. ClusterError: a rank failed, or all plans did.
    """
    say, asked = progress or _say_nothing, checked(PlanSettings, settings)
    if cluster is not None and (hosts is not None or measure or refresh):
        raise InputError(
            Setting("cluster"),
            " plans for a cluster on paper; to measure one give ",
            Setting("hosts"),
            " alone",
        )
    # before anything that takes long to import
    entries = choice_of(hosts)
    check_quality(asked.get("quality", "safe"))
    named = model_named(model)
    request = _request(named, asked)
    wanted = workload_in(asked) | longest_text(request.text_lengths)
    if sampler != "planner":
        _check_sampler(sampler, request, is_on_paper=cluster is not None)
    if resume is not None:
        _check_resumed(resume, named, sampler, measure, asked)
    if cluster is not None:
        return PlanResult(search(task_on_paper(named, _cluster(cluster), asked), progress=say))
    weights = asked.get("weights")
    if weights is not None:
        check_weights(Path(weights), named.spec)
    own = named.weights if weights is None else Path(weights)
    how = Measuring(Path(study), own, measure, budget_s, sampler, resume, refresh)
    return PlanResult(tuned(request, wanted, entries, how, say))


def plan_book(
    model: str | Path,
    cluster: Cluster | None,
    workloads: Path | str,
    *,
    otherwise: Otherwise = "refuse",
    progress: Say | None = None,
    **settings: Unpack[PlanSettings],
) -> BookResult:
    """Finds a plan for each workload of a mix on paper, and what one mesh for all would cost.

    `workloads` is the file of a mix, such as `[{"weight": 3, "height": 1024}, {"weight": 1}]`.
    `otherwise` says what becomes of requests that are for none of them (`PlanBook`).

    Raises:
        InputError: something asked for can't be, or has no meaning beside a mix.
    """
    asked = checked(PlanSettings, settings)
    check_quality(asked.get("quality", "safe"))
    named = model_named(model)
    request = _request(named, asked)
    if cluster is None:
        raise InputError(
            Setting("workloads"),
            " plans on paper: give ",
            Setting("cluster"),
            ", a recorded cluster's name or what `",
            Command("profile", (Setting("hosts", "FILE"), Setting("out", "cluster.json"))),
            "` has measured",
        )
    if request.objective != FASTEST:
        raise InputError(
            Setting("workloads"),
            " makes the weighted mean latency best; leave out ",
            Setting("objective"),
            " and ",
            Setting("max_latency_s"),
        )
    for name in workload_in(asked):
        raise InputError(
            Setting(name),
            ": with ",
            Setting("workloads"),
            " each entry of the file says its own; move it there",
        )
    known = _cluster(cluster)
    mix = load_mix(Path(workloads), named.spec, known.devices[0].kind)
    return BookResult(plan_mix(request, mix, known, progress or _say_nothing, otherwise))


def simulate(
    model: str | Path,
    cluster: Cluster,
    *,
    profile: Path | None = None,
    **settings: Unpack[SimulateSettings],
) -> SimulateResult:
    """Prices exactly one configuration; all degrees that aren't given are 1, and the mode is the
    fastest if none is given. `profile` is a file of the model's measured blocks.

    Raises:
        InputError: it isn't legal, or the profile is of something else; says why.
    """
    asked = checked(SimulateSettings, settings)
    named, known = model_named(model), _cluster(cluster)
    workload = workload_for(named.spec, known.devices[0].kind, **workload_in(asked))
    task = Task(
        named.spec,
        workload,
        known,
        gpus=asked.get("gpus"),
        backend=find_backend(asked.get("backend", "native")),
        profile=None if profile is None else ModelProfile.load(profile),
        known=named.known_quality(workload),
        vae_parallel=vae_parallel_in(asked, named.spec),
    )
    demanded = asked.get("mode")
    modes = (demanded,) if demanded else task.searched_modes
    found = [
        price_one(
            task,
            Mesh(**degrees_in(asked)),
            mode,
            patches=asked.get("patches"),
            warmup_steps=asked.get("warmup_steps"),
        )
        for mode in modes
    ]
    return SimulateResult(task, min(found, key=worth), modes)


def task_on_paper(named: NamedModel, cluster: ClusterProfile, settings: PlanSettings) -> Task:
    """What planning a model on a cluster searches, nothing measured.

    Raises:
        InputError: something asked for can't be.
    """
    check_quality(settings.get("quality", "safe"))
    request = _request(named, settings)
    wanted = workload_in(settings) | longest_text(request.text_lengths)
    workload = workload_for(named.spec, cluster.devices[0].kind, **wanted)
    return request.task(workload, cluster)


def _request(named: NamedModel, settings: PlanSettings) -> TuneRequest:
    own_weights = settings.get("weights") is not None
    lengths = text_lengths(named, settings)
    known: Callable[[Workload], Any] = _nothing_known if own_weights else named.known_quality
    return TuneRequest(
        named.spec,
        known=known,
        quality=settings.get("quality", "safe"),
        gpus=settings.get("gpus"),
        pins=degrees_in(settings),
        patches=settings.get("patches"),
        warmup_steps=settings.get("warmup_steps"),
        mode=settings.get("mode"),
        backend=find_backend(settings.get("backend", "native")),
        objective=objective_for(
            settings.get("objective", "latency"), settings.get("max_latency_s")
        ),
        text_lengths=lengths,
        vae_parallel=vae_parallel_in(settings, named.spec),
    )


def _check_sampler(sampler: SamplerName, request: TuneRequest, *, is_on_paper: bool) -> None:
    """Refuses Optuna's samplers where nothing is run, and for what they don't make best."""
    if sampler not in get_args(SamplerName):
        names = ", ".join(get_args(SamplerName))
        raise InputError(Setting("sampler", sampler), f": there are {names}")
    asked = Setting("sampler", sampler)
    if is_on_paper:
        raise InputError(
            asked,
            " chooses which plans are run, on paper none is: give ",
            Setting("hosts"),
            " alone",
        )
    if request.objective != FASTEST:
        raise InputError(
            asked,
            " makes latency best; leave out ",
            Setting("objective"),
            " and ",
            Setting("max_latency_s"),
        )


def _check_resumed(
    resume: ExecutionPlan,
    named: NamedModel,
    sampler: SamplerName,
    measure: int | None,
    asked: PlanSettings,
) -> None:
    """Refuses what has no meaning where a plan is run again.

    Raises:
        InputError: says what, or that the plan is for another model.
    """
    resume.require_model(named.spec.transformer_class, named.spec.config_hash, named.spec.config)
    for name, value in workload_in(asked).items():
        raise InputError(Setting(name, value), ": the plan to go on from says it; leave it out")
    if sampler != "planner":
        asked_for = Setting("sampler", sampler)
        raise InputError(asked_for, " knows no plan to go on from; leave it out")
    if measure == 0:
        raise InputError(Setting("measure", 0), ": the plan to go on from is run; leave it out")


def _cluster(cluster: Cluster) -> ClusterProfile:
    return cluster if isinstance(cluster, ClusterProfile) else find_cluster(str(cluster))


def _nothing_known(workload: Workload) -> None:
    """What was measured of a user's own weights."""


def _say_nothing(message: str) -> None:
    """Reports no progress."""
