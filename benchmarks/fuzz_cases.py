"""What `benchmarks.fuzz` damages, and what it then asks of it."""

import contextlib
import io
import json
import os
import random
import shutil
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from benchmarks.fuzz import fault_of
from benchmarks.mutations import (
    NO_FILES,
    damaged_bytes,
    damaged_command,
    damaged_hosts,
    damaged_json,
    damaged_lines,
    damaged_toml,
    put_no_file,
)
from ditplan import cli
from ditplan.planner.search.policy import MeasurementPolicy, RunResult
from ditplan.planner.search.pricing import price_one
from ditplan.planner.search.search import search
from ditplan.planner.search.workload_mix import load_mix
from ditplan.planner.task import Task
from ditplan.profiles.baseline import Baseline
from ditplan.profiles.book import BookEntry, PlanBook
from ditplan.profiles.catalog import CLUSTERS, DISTANCES, MODELS, find_cluster, find_model
from ditplan.profiles.cluster import ClusterProfile
from ditplan.profiles.errors import InputError
from ditplan.profiles.family import FAMILIES, load_family
from ditplan.profiles.hosts import load_hosts
from ditplan.profiles.hosts_formats import FORMATS
from ditplan.profiles.measured_plans import MeasuredPlans
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import ModelProfile, ModelSpec, TimePoint
from ditplan.profiles.nccl_cluster import cluster_of_tests
from ditplan.profiles.plan import ExecutionPlan, PlannedModel, bare_plan
from ditplan.profiles.quality import MeasuredQuality
from ditplan.profiles.record import Record
from ditplan.runtime.models.inspection import inspect_folder
from ditplan.runtime.models.loading import load_pipeline
from tests.unit.nccl_files import nccl_text

HERE = Path(__file__).parent
BASELINE, MEASURED = HERE / "baseline", HERE / "measured"
SAVED = HERE.parent / "tests" / "unit" / "schema_1"
Damage = Callable[[random.Random, str], bytes]
FOLDER_FILES = (
    "model_index.json",
    "transformer/config.json",
    "transformer/config.json",
    "transformer/config.json",
    "vae/config.json",
    "scheduler/scheduler_config.json",
    "text_encoder/model.safetensors",
)
HOSTS = (
    "# two machines\nnode-1 slots=4\nuser@node-2:4 # the other one\nnode-3\n",
    "r[1-2]n[01-04,7]-ib slots=8\nssh://me@[fe80::1%eth0]:22 slots=2\n",
    # Open MPI's, DeepSpeed's, MPICH's and a scheduler's
    "node-1 slots=2 max_slots = 4\nme@node-2\nnode-2\n",
    "node-1 slots=2\nnode-2 slots=2 # fast\n",
    "# MPICH\nnode-1:2\nnode-2\n",
    "node-1\nnode-1\nnode-2\n",
)
MIX = '[{"weight": 3, "height": 1024, "steps": 20}, {"weight": 1.5, "guidance": false}]'
SIMULATE = ("simulate", "--model", "sd3", "--cluster", "8xa100-nvlink")
ON_PAPER = ("tune", "--model", "sd3", "--cluster", "2xh100-nvlink", "--out", "plan.json")
PAPER_LINKS = ("--intra", "nvlink", "--inter", "8xib400", "--out", "c.json")
COMMANDS = (
    (*SIMULATE, "--cfg", "2", "--ulysses", "4", "--steps", "20", "--json"),
    (*SIMULATE, "--pipefusion", "4", "--patches", "8", "--warmup", "2", "--trace", "t.json"),
    (*SIMULATE, "--height", "512", "--batch", "2", "--gpus", "1", "--dtype", "float16"),
    ("simulate", "--model", "wan2.1-1.3b", "--cluster", "8xa100-nvlink", "--frames", "33"),
    (*ON_PAPER, "--quality", "0.1", "--gpus", "2", "--mode", "compile"),
    (*ON_PAPER, "--objective", "gpus", "--max-latency", "100", "--backend", "native"),
    ("tune", "--model", "sd3", "--cluster", "2xh100-nvlink", "--workloads", "mix.json"),
    ("tune", "--model", "sd3-tiny", "--hosts", "none.txt", "--budget", "10", "--measure", "1"),
    ("run", "--plan", "plan4096.json", "--prompt", "a", "--out", "a.png", "--seed", "3"),
    ("profile", "--hosts", "none.txt", "--out", "c.json", "--gpus", "2"),
    ("cluster", "new", *("--gpus", "2x8"), *("--device", "h100-sxm"), *PAPER_LINKS),
    ("profile", "--out", "c.json", "--from-nccl-tests", "mix.json", "none.json"),
    ("profile", "--model", "none", "--out", "m.json", "--height", "64", "--dtype", "float32"),
)


@dataclass(frozen=True)
class Workplace:
    """A temporary folder with a sample of each input, by kind."""

    folder: Path
    texts: Mapping[str, tuple[str, ...]]
    tiny: ModelSpec
    spec: ModelSpec
    cluster: ClusterProfile
    configs: tuple[ModelSpec, ...] = field(default=())


@contextlib.contextmanager
def workplace(seed: int) -> Iterator[Workplace]:
    """Makes the samples; the folder is removed in the end."""
    warnings.simplefilter("ignore")
    tiny, sd3, cluster = find_model("sd3-tiny"), find_model("sd3"), find_cluster("2xh100-nvlink")
    with tempfile.TemporaryDirectory(prefix=f"fuzz{seed}-") as name:
        folder = Path(name)
        journal = folder / "sample.log"
        trials = MeasurementPolicy(
            lambda _plan: RunResult(0.5, 1000), top=1, rounds=1, journal=journal
        )
        search(Task(tiny, tiny.defaults, cluster), trials)
        flux = find_model("flux-dev")
        plans = tuple(
            search(Task(spec, spec.defaults, cluster)).to_plan() for spec in (tiny, sd3, flux)
        )
        other = plans[0].model_copy(
            update={"workload": tiny.defaults.model_copy(update={"steps": 7})}
        )
        book = PlanBook(entries=tuple(BookEntry(weight=2, plan=plan) for plan in (plans[0], other)))
        planned = PlannedModel.of(
            "sd3-tiny", tiny.pipeline_class, tiny.transformer_class, tiny.config_hash
        )
        bare_plan(planned, tiny.defaults, Mesh(dp=4096)).save(folder / "plan4096.json")
        (folder / "mix.json").write_text(MIX)
        specs = tuple(ModelSpec.load(path) for path in sorted(MODELS.glob("*.json")))
        texts = {
            "plan": (
                *(plan.model_dump_json() for plan in plans),
                *(plan.text() for plan in plans),
                *_texts(SAVED, "plan.json"),
            ),
            "book": (book.model_dump_json(), *_texts(SAVED, "book.json")),
            "cluster": _texts(CLUSTERS, "*.json"),
            "model spec": tuple(spec.model_dump_json() for spec in specs),
            "model profile": (_a_profile(tiny).model_dump_json(),),
            "quality": _texts(DISTANCES, "*.json"),
            "family": _texts(FAMILIES, "*.toml"),
            "hosts": HOSTS,
            "mix": (MIX,),
            "study": (journal.read_text(),),
            "baseline": _texts(BASELINE, "*h?00-nvlink.json"),
            "nccl-tests": (nccl_text(), nccl_text("sendrecv_perf", version=3, hosts=("a", "b"))),
            "measured plans": _texts(MEASURED / "two-h100", "sd3-2048*.json"),
        }
        # what is imported when a pipeline is first loaded takes no case's time
        load_pipeline(tiny, MODELS / tiny.name, torch.device("cpu"), "float32")
        yield Workplace(folder, texts, tiny, sd3, cluster, tuple(map(_smaller, specs)))


def _texts(folder: Path, pattern: str) -> tuple[str, ...]:
    return tuple(path.read_text(encoding="utf-8") for path in sorted(folder.glob(pattern)))


def _a_profile(spec: ModelSpec) -> ModelProfile:
    points = tuple(
        TimePoint(
            part=part,
            batch=2,
            image_tokens=256,
            text_tokens=32,
            key_tokens=288,
            median_s=1e-3,
            p95_s=2e-3,
            runs=3,
        )
        for part in (spec.blocks[0].kind, "outside")
    )
    return ModelProfile(
        model=spec.name,
        config_hash=spec.config_hash,
        device="H100",
        dtype="bfloat16",
        software={"torch": "2"},
        measured_on="2026-01-02",
        points=points,
    )


def _smaller(spec: ModelSpec) -> ModelSpec:
    """A spec whose config has two blocks of a kind, so that it is inspected fast."""
    few = {
        key: min(value, 2)
        for key, value in spec.config.items()
        if key.startswith(("num_layers", "num_single_layers", "n_layers", "num_mmdit"))
        and isinstance(value, int)
    }
    return spec.model_copy(update={"config": spec.config | few})


def run_case(
    place: Workplace, rng: random.Random, number: int, *, is_command: bool, shows: bool = False
) -> tuple[str, str, str]:
    """Runs one case: its kind, how it ended, and what is wrong with that."""
    kind = "command" if is_command else rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    folder = place.folder / f"case{number}"
    folder.mkdir()
    try:
        if is_command:
            end, what = _command(place, rng, folder, shows)
        else:
            end, what = _load(place, rng, kind, folder)
    except Exception as error:  # noqa: BLE001 (any of them is what is looked for)
        if shows:
            traceback.print_exc()
        end, what = "fault", _where(error)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return kind, end, what


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename]
    last = own[-1] if own else frames[-1]
    return f"{type(error).__name__} in {Path(last.filename).name}:{last.name}"


def _load(place: Workplace, rng: random.Random, kind: str, folder: Path) -> tuple[str, str]:
    """Damages a sample and loads it: how that ended, and what is wrong with it."""
    if kind in ("model folder", "weights"):
        path = _damaged_folder(place, rng, folder, kind)
        load: Callable[[Path], object] = partial(
            _inspect if kind == "model folder" else _load_weights, place
        )
    else:
        path = folder / f"input.{'toml' if kind == 'family' else 'json'}"
        damage, load = LOADERS[kind][0], partial(LOADERS[kind][1], place)
        if rng.random() < 0.04:
            put_no_file(rng.choice(NO_FILES), path)
        else:
            path.write_bytes(damage(rng, rng.choice(place.texts[kind])))
    try:
        load(path)
    except InputError as error:
        message = str(error)
        if fault := fault_of(message):
            return "fault", fault
        return ("refused", "") if folder.name in message else ("fault", "names no file")
    return "loaded", ""


def _damaged_folder(place: Workplace, rng: random.Random, folder: Path, kind: str) -> Path:
    """A folder of configs, one of whose files is damaged; with all weights for `weights`."""
    model = folder / "model"
    if kind == "weights":
        shutil.copytree(MODELS / "sd3-tiny", model, copy_function=os.symlink)
        files = [path for path in model.rglob("*") if path.is_file()]
    else:
        spec = rng.choice(place.configs)
        for name, content in _configs(spec).items():
            (model / name).parent.mkdir(parents=True, exist_ok=True)
            (model / name).write_text(json.dumps(content))
        (model / "text_encoder").mkdir()
        source = MODELS / "sd3-tiny/text_encoder/model.safetensors"
        shutil.copy(source, model / "text_encoder")
        files = [model / name for name in FOLDER_FILES]
    path = rng.choice(sorted(files))
    content_bytes = path.read_bytes()
    path.unlink()
    if rng.random() < 0.06:
        put_no_file(rng.choice(NO_FILES), path)
    elif path.suffix == ".json":
        path.write_bytes(damaged_json(rng, content_bytes.decode()))
    elif rng.random() < 0.5:
        size = int.from_bytes(content_bytes[:8], "little")
        header = damaged_json(rng, content_bytes[8 : 8 + size].decode())
        size = len(header) if rng.random() < 0.8 else rng.choice((0, 2**20, 2**40, 2**63 + 1))
        path.write_bytes(size.to_bytes(8, "little") + header + content_bytes[8 + size :])
    else:
        path.write_bytes(damaged_bytes(rng, content_bytes[:4096]))
    return model


def _configs(spec: ModelSpec) -> dict[str, dict[str, object]]:
    parts = {
        "transformer/config.json": (spec.transformer_class, spec.config),
        "vae/config.json": (spec.vae_class, spec.vae_config),
        "scheduler/scheduler_config.json": (spec.scheduler_class, spec.scheduler_config),
    }
    index = {
        "_class_name": spec.pipeline_class,
        "transformer": ["diffusers", spec.transformer_class],
        "vae": ["diffusers", spec.vae_class],
        "text_encoder": ["transformers", "T5EncoderModel"],
    }
    configs = {path: {"_class_name": name} | config for path, (name, config) in parts.items()}
    return {"model_index.json": index, **configs}


def _inspect(_place: Workplace, path: Path) -> None:
    spec = inspect_folder(path, path.name)
    # what a scheduler calls infinite isn't saved as such
    _survives(spec.model_copy(update={"scheduler_config": {}}), path.parent)


def _load_weights(place: Workplace, path: Path) -> None:
    load_pipeline(place.tiny, path, torch.device("cpu"), "float32", blocks=(0, 1))


def _survives(record: Record, folder: Path) -> None:
    """Saves what was loaded, and loads it again."""
    again = type(record).load(record.save(folder / "again.json"))
    if again != record:
        raise AssertionError("is another one when it is loaded again")


def _record(kind: type[Record], _place: Workplace, path: Path) -> None:
    _survives(kind.load(path), path.parent)


def _plan(_place: Workplace, path: Path) -> None:
    plan = ExecutionPlan.load(path)
    for rank in range(min(plan.mesh.size, 4)):
        plan.blocks_of(rank)
    if plan.configuration.step_cache:
        plan.configuration.step_cache.computed_steps(plan.workload.steps)
    _survives(plan, path.parent)


def _cluster(place: Workplace, path: Path) -> None:
    cluster = ClusterProfile.load(path)
    _survives(cluster, path.parent)
    _price(Task(place.spec, place.spec.defaults, cluster), Mesh(ulysses=2))


def _nccl_tests(place: Workplace, path: Path) -> None:
    cluster = cluster_of_tests([path], "fuzzed")
    _survives(cluster, path.parent)
    _price(Task(place.spec, place.spec.defaults, cluster), Mesh(ulysses=2))


def _spec(place: Workplace, path: Path) -> None:
    spec = ModelSpec.load(path)
    _survives(spec, path.parent)
    _price(Task(spec, spec.defaults, place.cluster), Mesh(ulysses=2))


def _profile(place: Workplace, path: Path) -> None:
    profile = ModelProfile.load(path)
    _survives(profile, path.parent)
    _price(Task(place.tiny, place.tiny.defaults, place.cluster, profile=profile), Mesh(ulysses=2))


def _price(task: Task, mesh: Mesh) -> None:
    """Prices something with what was loaded, which may refuse it in a line."""
    try:
        price_one(task, mesh, "eager")
    except InputError as error:
        if fault := fault_of(str(error)):
            raise AssertionError(fault) from None


def _hosts(_place: Workplace, path: Path) -> object:
    """As ditplan's own file, after all that other tools could make of it."""
    for form in FORMATS:
        try:
            load_hosts(path, form)
        except InputError as error:
            if fault := fault_of(str(error)):
                raise AssertionError(f"{form}: {fault}") from None
    return load_hosts(path)


def _study(place: Workplace, path: Path) -> None:
    search(Task(place.tiny, place.tiny.defaults, place.cluster), _one_run(path))


def _one_run(journal: Path) -> MeasurementPolicy:
    """Runs the best plan once, as far as it goes here."""
    run = RunResult(0.5, 1000)
    return MeasurementPolicy(lambda _plan: run, top=1, rounds=1, journal=journal)


def _damaged_journal(rng: random.Random, text: str) -> bytes:
    return damaged_lines(rng, text, lambda line: damaged_json(rng, line))


LOADERS: dict[str, tuple[Damage, Callable[[Workplace, Path], object]]] = {
    "plan": (damaged_json, _plan),
    "book": (damaged_json, partial(_record, PlanBook)),
    "cluster": (damaged_json, _cluster),
    "model spec": (damaged_json, _spec),
    "model profile": (damaged_json, _profile),
    "quality": (damaged_json, partial(_record, MeasuredQuality)),
    "family": (damaged_toml, lambda _place, path: load_family(path)),
    "hosts": (damaged_hosts, _hosts),
    "mix": (damaged_json, lambda place, path: load_mix(path, place.tiny, "cuda")),
    "study": (_damaged_journal, _study),
    "baseline": (damaged_json, partial(_record, Baseline)),
    "nccl-tests": (damaged_json, _nccl_tests),
    "measured plans": (damaged_json, partial(_record, MeasuredPlans)),
}
WEIGHTS = {
    "plan": 18,
    "book": 6,
    "cluster": 18,
    "model spec": 12,
    "model profile": 6,
    "quality": 4,
    "family": 8,
    "hosts": 8,
    "mix": 6,
    "study": 2,
    "baseline": 3,
    "measured plans": 3,
    "nccl-tests": 6,
    "model folder": 10,
    "weights": 2,
}


def _command(
    place: Workplace, rng: random.Random, folder: Path, shows: bool = False
) -> tuple[str, str]:
    """Runs a damaged command line in this process, in a folder with a plan and a mix."""
    words = damaged_command(rng, rng.choice(COMMANDS))
    for name in ("plan4096.json", "mix.json"):
        os.symlink(place.folder / name, folder / name)
    os.mkfifo(folder / "fifo")
    out, err = (
        io.TextIOWrapper(io.BytesIO(), "utf-8"),
        io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace"),
    )
    before, sys.argv = sys.argv, ["ditplan", *words]
    code: object = None
    to_out, to_err = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
    with contextlib.chdir(folder), to_out, to_err:
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code
        finally:
            sys.argv = before
    out.flush()
    err.flush()
    said = err.buffer.getvalue().decode()
    if shows:
        sys.stderr.write(f"{words}\n{said}\n")
    if not code:
        return "loaded", ""
    if code != 2:
        return "fault", f"exit {code}: {said[-100:]}"
    last = said.removesuffix("\n").rpartition("\n")[2]
    if not last.startswith("error: "):
        return "fault", f"last line is no error: {last[:80]}"
    fault = fault_of(last.removeprefix("error: "))
    return ("fault", fault) if fault else ("refused", "")
