"""The command line: the one place where planner and runtime meet."""

import json
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from ditplan.planner.asked import Wishes, check_quality, workload_for
from ditplan.planner.mix import load_mix, plan_mix
from ditplan.planner.objectives import FASTEST, Objective, ObjectiveName, objective_for
from ditplan.planner.pricing import Task, price_one, space_of, timeline_of
from ditplan.planner.ranking import Ranking
from ditplan.planner.report import (
    best_text,
    mix_json,
    mix_table,
    mix_text,
    ranking_table,
    shares_json,
    shares_text,
    simulate_json,
    tune_json,
)
from ditplan.planner.requests import grid_points, wanted_points
from ditplan.planner.search import Trialrun, Trials, search, study_name
from ditplan.planner.topology import Topology
from ditplan.planner.trace import chrome_trace
from ditplan.profiles.backends import find_backend, require_mode, require_runtime
from ditplan.profiles.bounds import (
    MOST_PATCHES,
    MOST_PIXELS,
    MOST_RANKS,
    MOST_SECONDS,
    MOST_STEPS,
)
from ditplan.profiles.catalog import find_cluster, find_model, known_quality, shipped_weights
from ditplan.profiles.cluster import ClusterProfile, DeviceKind
from ditplan.profiles.errors import DitplanError, InputError, PlanWarning, one_line
from ditplan.profiles.files import is_text, path_text
from ditplan.profiles.hosts import HostLine, load_hosts
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import Mode, ModelProfile, ModelSpec, PointRequest
from ditplan.profiles.plan import ExecutionPlan
from ditplan.profiles.quality import MeasuredQuality
from ditplan.profiles.record import shortened, write_atomically
from ditplan.profiles.workload import Dtype, Workload

if TYPE_CHECKING:
    from ditplan.runtime.workers import Workers

SMALL_MODEL_PARAMETERS = 100_000_000

app = typer.Typer(
    help="Finds and runs the fastest parallel plan for a diffusion transformer on your GPUs.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Model = Annotated[str, typer.Option(help="A shipped model's name, or a folder saved by diffusers.")]
Hosts = Annotated[
    Path | None, typer.Option(help="File of hosts, one a line; this machine without it.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Gpus = Annotated[
    int | None, typer.Option(min=1, max=MOST_RANKS, help="How many GPUs (or CPU ranks).")
]
Pixels = Annotated[
    int | None,
    typer.Option(min=1, max=MOST_PIXELS, help="Pixels; the model's usual if left out."),
]
Count = Annotated[
    int | None, typer.Option(min=1, max=MOST_STEPS, help="The model's usual if left out.")
]
Guidance = Annotated[
    bool | None, typer.Option("--guidance/--no-guidance", help="Classifier-free guidance.")
]
Type = Annotated[Dtype | None, typer.Option(help="float32 is the only one on CPUs.")]
Degree = Annotated[int | None, typer.Option(min=1, max=MOST_RANKS, help="Fix this degree.")]
ExactDegree = Annotated[
    int, typer.Option(min=1, max=MOST_RANKS, help="Degree of this parallelism.")
]
Patches = Annotated[
    int | None,
    typer.Option(
        min=1, max=MOST_PATCHES, help="Patches of PipeFusion; it has stages by --pipefusion."
    ),
]
Warmup = Annotated[
    int | None,
    typer.Option(min=1, max=MOST_STEPS, help="PipeFusion's first steps, on the whole picture."),
]
AskedMode = Annotated[
    Mode | None,
    typer.Option(help="Demand this way of executing each rank's share (graph: CUDA graph)."),
]
BackendName = Annotated[
    str,
    typer.Option(
        help="Whose runtime is priced: native (the one that runs), dry-run, xdit or diffusers."
    ),
]


class Terminal:
    """Where words go: progress to stderr; the result, as text or one JSON object, to stdout."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self._err = Console(stderr=True, highlight=False)
        # a pipe has no width of its own, and a table of 80 columns folds
        self._out = Console(highlight=False, width=None if sys.stdout.isatty() else 120)

    def say(self, message: str) -> None:
        """Reports progress."""
        self._err.print(escape(message), soft_wrap=True)

    def show(self, for_people: object) -> None:
        """Shows a result, unless JSON was asked for."""
        if not self.as_json:
            self._out.print(for_people, soft_wrap=isinstance(for_people, str))

    def finish(self, result: dict[str, Any]) -> None:
        """Prints the JSON object, if it was asked for."""
        if self.as_json:
            sys.stdout.write(json.dumps(result) + "\n")


@app.command(
    epilog="Examples: `ditplan profile --hosts hosts.txt --out cluster.json`, "
    "`ditplan profile --model sd3 --out model.json`"
)
def profile(
    out: Annotated[Path, typer.Option(help="The file to write.")],
    hosts: Hosts = None,
    model: Annotated[str | None, typer.Option(help="Measure this model's blocks instead.")] = None,
    gpus: Gpus = None,
    height: Pixels = None,
    width: Pixels = None,
    dtype: Type = None,
    as_json: Json = False,
) -> None:
    """Measure a cluster (devices, links, collectives), or with --model a model's blocks here."""
    terminal = Terminal(as_json)
    _require_folder(out)
    if model is not None:
        if hosts is not None:
            raise InputError("--model measures on this machine's devices; leave out --hosts")
        spec, _ = _find_model(model)
        with _workers(None, gpus or 1) as workers:
            workload = workload_for(spec, workers.device, height=height, width=width, dtype=dtype)
            cluster = workers.profile_cluster(terminal.say)
            modes = find_backend("native").modes_to_search(workers.device)
            points = grid_points(spec, workload, modes)
            measured = workers.profile_model(spec, workload, points, cluster)
        measured.save(out)
        terminal.show(f"{out}: {len(measured.points)} points of {spec.name} on {measured.device}")
        terminal.finish(
            {"out": str(out), "points": len(measured.points), "device": measured.device}
        )
        return
    with _workers(hosts, gpus) as workers:
        cluster = workers.profile_cluster(terminal.say)
    cluster.save(out)
    for warning in cluster.warnings:
        terminal.say(f"warning: {warning}")
    tables = len(cluster.collectives)
    terminal.show(f"{out}: {len(cluster.devices)} x {cluster.devices[0].name}, {tables} tables")
    terminal.finish(
        {
            "out": str(out),
            "hosts": [host.name for host in cluster.hosts],
            "gpus": len(cluster.devices),
            "links": [link.model_dump() for link in cluster.links],
            "collectives": tables,
            "warnings": list(cluster.warnings),
        }
    )


@app.command(
    epilog="Examples: `ditplan tune --model sd3 --hosts hosts.txt`, "
    "`ditplan tune --model sd3 --cluster 8xa100-nvlink --json`"
)
def tune(
    model: Model,
    hosts: Hosts = None,
    cluster: Annotated[
        str | None, typer.Option(help="A recorded cluster's name or a file made by `profile`.")
    ] = None,
    height: Pixels = None,
    width: Pixels = None,
    frames: Count = None,
    steps: Count = None,
    guidance: Guidance = None,
    batch: Count = None,
    dtype: Type = None,
    gpus: Gpus = None,
    cfg: Degree = None,
    pipefusion: Degree = None,
    ulysses: Degree = None,
    ring: Degree = None,
    dp: Degree = None,
    patches: Patches = None,
    warmup: Warmup = None,
    mode: AskedMode = None,
    backend: BackendName = "native",
    objective: Annotated[
        ObjectiveName,
        typer.Option(
            help="What to make best: latency; throughput, of as many copies of a plan as there is "
            "room for; or gpus, the fewest that keep --max-latency.",
        ),
    ] = "latency",
    max_latency: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=MOST_SECONDS,
            help="The most seconds of denoising a call may take, copies running.",
        ),
    ] = None,
    workloads: Annotated[
        Path | None,
        typer.Option(
            help='A mix to plan for on paper, such as [{"weight": 3, "height": 1024}, ...]: a plan '
            "for each workload, and what one mesh for all would cost.",
        ),
    ] = None,
    quality: Annotated[
        str,
        typer.Option(
            help="safe (exact plans, and PipeFusion with a warm-up step), exact, any (step caches "
            "too), or the largest relative L2 distance of the final latents from one device's.",
        ),
    ] = "safe",
    measure: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=MOST_STEPS,
            help="Run so many of the best plans for real, and the rule of thumb beside them; fewer "
            "when no other can be more than 3% faster. Default with hosts: 3; 0 for a full-size "
            "model on CPUs.",
        ),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Folder of real weights to measure with.")
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(min=0, max=MOST_SECONDS, help="Seconds after which no new run is started."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The file to write: plan.json, or book.json with --workloads."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Find a model's fastest plan: price all of them, run the best ones for real, write it down.

    With --hosts what is missing is measured first. Measurements lie beside the plan in OUT.study; a
    tune that was ended goes on from there.
    """
    terminal = Terminal(as_json)
    out = out or Path("plan.json" if workloads is None else "book.json")
    _require_folder(out)
    check_quality(quality)
    spec, folder = _find_model(model)
    asked: dict[str, Any] = {
        "height": height,
        "width": width,
        "frames": frames,
        "steps": steps,
        "guidance": guidance,
        "batch": batch,
        "dtype": dtype,
    }
    pins = {"cfg": cfg, "pipefusion": pipefusion, "ulysses": ulysses, "ring": ring, "dp": dp}
    wishes = Wishes(
        spec,
        known=partial(_recorded_quality, model, spec) if weights is None else _nothing_known,
        quality=quality,
        gpus=gpus,
        pins={axis: degree for axis, degree in pins.items() if degree is not None},
        patches=patches,
        warmup_steps=warmup,
        mode=mode,
        backend=find_backend(backend),
        objective=objective_for(objective, max_latency),
    )
    if cluster is not None and (hosts is not None or measure):
        raise InputError(
            "--cluster plans for a cluster on paper; to measure one give --hosts alone"
        )
    if workloads is not None:
        known = _cluster_of_mix(cluster, wishes.objective, asked)
        _tune_mix(wishes, workloads, known, out, terminal)
        return
    if cluster is not None:
        known = find_cluster(cluster)
        workload = workload_for(spec, known.devices[0].kind, **asked)
        ranking = search(wishes.task(workload, known), progress=terminal.say)
    else:
        require_runtime(wishes.backend)
        if weights is not None:
            _check_weights(weights, spec)
        how = _How(weights or folder, measure, budget, _study_of(out))
        ranking = _tune_for_real(wishes, asked, hosts, how, terminal.say)
    ranking.to_plan().save(out)
    terminal.show(ranking_table(ranking))
    terminal.show(f"{out}: {best_text(ranking)}")
    terminal.finish({"plan": str(out)} | tune_json(ranking))


@app.command(
    epilog="Examples: `ditplan simulate --cluster 8xa100-nvlink --model sd3 --cfg 2 --ulysses 4`, "
    "`ditplan simulate --cluster 8xl20-pcie --model flux-dev --pipefusion 8 --trace trace.json`"
)
def simulate(
    cluster: Annotated[str, typer.Option(help="A recorded cluster's name or a file.")],
    model: Model,
    height: Pixels = None,
    width: Pixels = None,
    frames: Count = None,
    steps: Count = None,
    guidance: Guidance = None,
    batch: Count = None,
    dtype: Type = None,
    gpus: Gpus = None,
    cfg: ExactDegree = 1,
    pipefusion: ExactDegree = 1,
    ulysses: ExactDegree = 1,
    ring: ExactDegree = 1,
    dp: ExactDegree = 1,
    patches: Patches = None,
    warmup: Warmup = None,
    mode: AskedMode = None,
    backend: BackendName = "native",
    trace: Annotated[
        Path | None,
        typer.Option(help="Write when each rank and link does what, for ui.perfetto.dev."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Price exactly one configuration."""
    terminal = Terminal(as_json)
    if trace is not None:
        _require_folder(trace)
    spec, _ = _find_model(model)
    known = find_cluster(cluster)
    workload = workload_for(
        spec,
        known.devices[0].kind,
        height=height,
        width=width,
        frames=frames,
        steps=steps,
        guidance=guidance,
        batch=batch,
        dtype=dtype,
    )
    mesh = Mesh(dp=dp, cfg=cfg, pipefusion=pipefusion, ring=ring, ulysses=ulysses)
    recorded = _recorded_quality(model, spec, workload)
    task = Task(spec, workload, known, gpus=gpus, backend=find_backend(backend), known=recorded)
    priced = price_one(task, mesh, mode or "eager", patches=patches, warmup_steps=warmup)
    prediction = priced.prediction
    low_s, high_s = prediction.interval_s
    patched = f", {priced.candidate.pipefusion}" if priced.candidate.pipefusion else ""
    terminal.show(f"{spec.name}: {workload}, {mesh}{patched} on {known.name}")
    terminal.show(
        f"latency {prediction.latency_s:.4g} s (90% interval {low_s:.3g} to {high_s:.3g} s)"
    )
    for part, seconds in prediction.parts.items():
        terminal.show(
            f"  {part:<12} {seconds:8.4f} s  {100 * seconds / prediction.latency_s:5.1f}%"
        )
    if shared := shares_text(priced, spec, workload):
        terminal.show(shared)
    terminal.show(f"memory {prediction.memory_bytes / 1e9:.1f} GB a GPU; {prediction.source}")
    if shortage := priced.too_big or priced.warning:
        terminal.say(f"warning: it does not fit: {shortage}")
    written: dict[str, object] = {}
    if trace is not None:
        timeline = timeline_of(task, priced.candidate)
        title = f"{spec.name}: {workload}, {mesh} on {known.name}"
        write_atomically(trace, chrome_trace(timeline, priced.candidate, title))
        shown = f"steps 1 to {timeline.shown_steps} of {timeline.steps}"
        terminal.show(f"{trace}: {shown}; open it in https://ui.perfetto.dev")
        written["trace"] = str(trace)
    terminal.finish(simulate_json(prediction) | shares_json(priced) | written)


@app.command(
    epilog='Example: `ditplan run --plan plan.json --prompt "a red circle" --out image.png`'
)
def run(
    plan: Annotated[Path, typer.Option(help="A plan written by `tune`.")],
    prompt: Annotated[str, typer.Option(help="What the picture shows.")],
    out: Annotated[Path, typer.Option(help="The picture to write: .png, .jpg or .webp.")],
    hosts: Hosts = None,
    weights: Annotated[
        Path | None, typer.Option(help="Folder of a diffusers pipeline with real weights.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of the noise.")] = 0,
    as_json: Json = False,
) -> None:
    """Execute a plan: make a picture, and compare the time it took with the one predicted."""
    terminal = Terminal(as_json)
    loaded = ExecutionPlan.load(plan)
    _require_folder(out)
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise InputError(f"{out}: can't write pictures of this kind; name a .png, .jpg or .webp")
    spec, folder = _model_of_plan(loaded, plan, weights)
    with _workers(hosts, None, needed=loaded) as workers:
        workers.pool()
        noise = "" if folder else f"; no weights for {spec.name}, so the picture is noise"
        terminal.say(f"{loaded.mesh}, {loaded.workload}: running on {workers.ranks} rank(s){noise}")
        result = workers.generate(spec, folder, loaded, prompt, seed, out.absolute())
    predicted_s = loaded.prediction.latency_s if loaded.prediction else None
    compared = (
        f", predicted {predicted_s:.4g} s ({100 * (result.latency_s / predicted_s - 1):+.0f}%)"
        if predicted_s
        else ""
    )
    terminal.show(f"{out}: {loaded.mesh}, denoised in {result.latency_s:.4g} s{compared}")
    terminal.finish(
        {
            "out": str(out),
            "latency_s": result.latency_s,
            "predicted_s": predicted_s,
            "end_to_end_s": result.end_to_end_s,
            "ranks": loaded.mesh.size,
            "peak_memory_bytes": result.memory_bytes,
        }
    )


def _find_model(name: str) -> tuple[ModelSpec, Path | None]:
    """The spec of a shipped model or of a folder, and its weights if there are any."""
    # unlike pathlib's, os.path's answer for a name that no file can have is no
    if not os.path.isdir(name):
        return find_model(name), shipped_weights(name.lower())
    folder = Path(name)
    from ditplan.runtime.inspection import inspect_folder

    return inspect_folder(folder, folder.resolve().name), folder


def _model_of_plan(
    plan: ExecutionPlan, path: Path, weights: Path | None
) -> tuple[ModelSpec, Path | None]:
    if weights is None:
        try:
            spec = find_model(plan.model.name)
        except InputError:
            raise InputError(
                f"{path}: {plan.model.name} is not a shipped model; give its folder: --weights DIR"
            ) from None
        folder = shipped_weights(spec.name)
    else:
        from ditplan.runtime.inspection import inspect_folder

        spec, folder = inspect_folder(weights, plan.model.name), weights
    plan.require_model(spec.transformer_class, spec.config_hash)
    return spec, folder


def _check_weights(weights: Path, spec: ModelSpec) -> None:
    from ditplan.runtime.inspection import inspect_folder

    found = inspect_folder(weights, spec.name)
    if found.config_hash != spec.config_hash:
        raise InputError(
            f"--weights {weights}: this {found.transformer_class} has config {found.config_hash}, "
            f"{spec.name} has {spec.config_hash}; give {spec.name}'s folder, or --model {weights}"
        )


def _require_folder(out: Path) -> None:
    folder = out.absolute().parent
    if not os.path.isdir(folder):
        raise InputError(f"{out}: the folder {out.parent} doesn't exist; make it first")
    if os.path.isdir(out):
        raise InputError(f"{out}: this is a folder; name a file in it")
    if os.path.exists(out) and not os.path.isfile(out):
        raise InputError(f"{out}: this is no regular file; name one that is, or a new one")
    try:
        os.lstat(out)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise InputError(f"{path_text(out)}: can't be written: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise InputError(f"{out}: the folder {out.parent} can't be written to; name another")


def _study_of(out: Path) -> Path:
    """The folder beside a plan that holds what is measured for it; it needn't exist."""
    study = out.with_suffix(".study")
    if study == out or (study.exists() and not study.is_dir()):
        raise InputError(f"{out}: measurements go to a folder {study}, which is a file; rename it")
    return study


def _workers(
    hosts: Path | None, gpus: int | None, needed: ExecutionPlan | None = None
) -> "Workers":
    """Ranks on the hosts: as many as a plan needs, else `gpus`, else all there is room for."""
    entries: tuple[HostLine, ...] | None = None if hosts is None else load_hosts(hosts)
    from ditplan.runtime.launch import count_slots
    from ditplan.runtime.workers import Workers, device_kind

    kind = device_kind()
    room = count_slots(entries, kind)
    if needed is not None:
        if room < needed.mesh.size:
            needed.require_ranks(room)
        return Workers(entries, needed.mesh.size, kind)
    if gpus is not None and gpus > room:
        raise InputError(f"--gpus {gpus}: there is room for {room} rank(s); use at most {room}")
    return Workers(entries, gpus or room, kind)


@dataclass(frozen=True)
class _How:
    """How to measure: with which weights, how many plans, for how long, and where it is kept."""

    weights: Path | None
    measure: int | None
    budget_s: float | None
    study: Path


def _tune_for_real(
    wishes: Wishes,
    asked: dict[str, Any],
    hosts: Path | None,
    how: _How,
    say: Callable[[str], None],
) -> Ranking:
    """Measures what is missing, searches, and runs the best plans; keeps it all in a folder."""
    with _workers(hosts, wishes.gpus) as workers:
        workload = workload_for(wishes.spec, workers.device, **asked)
        # what can't be planned is refused before anything is measured
        wishes.allowed(workload)
        if wishes.mode is not None:
            require_mode(wishes.backend, wishes.mode, workers.device)
        cluster = _cluster_of(workers, how.study / "cluster.json", say)
        task = wishes.task(workload, cluster)
        requests = _points_of(task)
        how.study.mkdir(exist_ok=True)
        cluster.save(how.study / "cluster.json")
        task = _with_model_profile(task, requests, workers, how.study, say)
        top = _default_measure(task.spec, workers.device) if how.measure is None else how.measure

        def run(plan: ExecutionPlan) -> Trialrun:
            result = workers.measure(task.spec, how.weights, plan)
            return Trialrun(result.latency_s, result.memory_bytes)

        journal = how.study / "journal.log"
        trials = Trials(run, top=top, budget_s=how.budget_s, journal=journal)
        return search(task, trials, progress=say)


def _tune_mix(
    wishes: Wishes, workloads: Path, cluster: ClusterProfile, out: Path, terminal: Terminal
) -> None:
    """Plans each workload of a mix, writes the book, and says what one mesh would cost."""
    mix = load_mix(workloads, wishes.spec, cluster.devices[0].kind)
    mixed = plan_mix(wishes, mix, cluster, terminal.say)
    mixed.to_book().save(out)
    terminal.show(mix_table(mixed))
    terminal.show(f"{out}: {mix_text(mixed)}")
    terminal.finish({"plan": str(out)} | mix_json(mixed))


def _cluster_of_mix(
    cluster: str | None, objective: Objective, asked: Mapping[str, object]
) -> ClusterProfile:
    """The cluster on paper to plan a mix for; refuses what has no meaning beside a mix."""
    if cluster is None:
        raise InputError(
            "--workloads plans on paper: give --cluster, a recorded cluster's name or what "
            "`ditplan profile --hosts FILE --out cluster.json` has measured"
        )
    if objective != FASTEST:
        raise InputError(
            "--workloads makes the weighted mean latency best; leave out --objective and "
            "--max-latency"
        )
    for name, value in asked.items():
        if value is not None:
            raise InputError(
                f"--{name}: with --workloads each entry of the file says its own; move it there"
            )
    return find_cluster(cluster)


def _cluster_of(workers: "Workers", path: Path, say: Callable[[str], None]) -> ClusterProfile:
    """The cluster as measured before for the same devices, or measured now."""
    if path.exists():
        saved = ClusterProfile.load(path)
        if tuple(device.name for device in saved.devices) == workers.device_names():
            say(f"cluster: as measured on {saved.measured_on} (delete {path} to measure anew)")
            return saved
    cluster = workers.profile_cluster(say)
    for warning in cluster.warnings:
        say(f"warning: {warning}")
    return cluster


def _nothing_known(workload: Workload) -> None:
    """What was measured of a user's own weights."""


def _recorded_quality(model: str, spec: ModelSpec, workload: Workload) -> MeasuredQuality | None:
    """What was measured of approximate pictures, which holds for the shipped weights alone."""
    return None if os.path.isdir(model) else known_quality(spec, workload)


def _points_of(task: Task) -> Sequence[PointRequest]:
    """The shapes of blocks whose times the task's candidates need."""
    choices = space_of(task, Topology(task.cluster)).choices
    # warm-up steps run what the mesh would without patches
    meshes = {choice.mesh for choice in choices}
    settings = [(choice.mesh, part) for choice in choices for part, _ in choice.settings]
    patched = {(mesh, part.patches) for mesh, part in settings if part}
    return wanted_points(task.spec, task.workload, meshes, task.searched_modes, patched)


def _with_model_profile(
    task: Task,
    requests: Sequence[PointRequest],
    workers: "Workers",
    study: Path,
    say: Callable[[str], None],
) -> Task:
    """The task with the model's blocks measured: before, for this same task, or now."""
    path = study / f"{study_name(task)}.json"
    if path.exists():
        profile = ModelProfile.load(path)
        say(f"model: as measured on {profile.measured_on} (delete {path} to measure anew)")
    else:
        say(f"measuring {task.spec.name}'s blocks at {len(requests)} shapes")
        profile = workers.profile_model(task.spec, task.workload, requests, task.cluster)
        profile.save(path)
    _say_what_is_known(profile, requests, say)
    return replace(task, profile=profile)


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


def _default_measure(spec: ModelSpec, device: DeviceKind) -> int:
    """How many plans to run when the user doesn't say: none where one run would take minutes."""
    small = spec.transformer_parameters <= SMALL_MODEL_PARAMETERS
    return 3 if small or device == "cuda" else 0


def _show_warning(
    show: Callable[..., None], message: Warning | str, category: type[Warning], *place: Any
) -> None:
    """Shows what warns of a plan as progress is shown."""
    if issubclass(category, PlanWarning):
        Terminal(as_json=True).say(f"warning: {message}")
    else:
        show(message, category, *place)


def _check_words(words: Sequence[str]) -> None:
    """Refuses words that can be neither printed nor saved, nor be a file's name.

    Raises:
        InputError: there is one.
    """
    for word in words:
        if not is_text(word) or "\0" in word:
            raise InputError(f"{shortened(word)}: this is no UTF-8 text; write it otherwise")


def main() -> None:
    """Runs the command line; a user's errors end it with one message and their exit code."""
    warnings.showwarning = partial(_show_warning, warnings.showwarning)
    warnings.simplefilter("always", PlanWarning)
    try:
        _check_words(sys.argv[1:])
        sys.exit(app(sys.argv[1:] or ["--help"], standalone_mode=False))
    except (DitplanError, typer.TyperException) as error:
        message = str(error)
        if isinstance(error, typer.TyperException):
            usage = error.format_message().replace("Value error, ", "")
            message = f"{usage.rstrip('.')}; see --help"
        if error.exit_code == InputError.exit_code:
            message = one_line(message)
        console = Console(stderr=True, highlight=False)
        console.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
