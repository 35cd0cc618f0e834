"""What somebody runs now, priced against the best on as many GPUs."""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ditplan.exporting.engine_files import why_no_deploy_file
from ditplan.importing.present import ENGINES, Present, ReadEngine, Surroundings, present_of
from ditplan.importing.read import read_text_or_file
from ditplan.importing.request import model_of, workload_of
from ditplan.importing.understood import Understood, understand
from ditplan.importing.written import Written
from ditplan.models import NamedModel
from ditplan.planner.network.topology import Topology
from ditplan.planner.report import approximation_text, candidate_json
from ditplan.planner.search.pricing import cost_model_of, price_one, priced_as_is
from ditplan.planner.search.ranking import PricedCandidate, SearchResult
from ditplan.planner.search.search import search
from ditplan.planner.task import Task
from ditplan.planning import task_on_paper
from ditplan.profiles.cluster import ClusterProfile
from ditplan.profiles.configuration import Weights
from ditplan.profiles.errors import Command, InputError, Sentence, Setting, one_line
from ditplan.profiles.mesh import AXES, Mesh
from ditplan.settings import PlanSettings, checked

PREDICTIONS_TELL = 0.03
"""Differences of predictions below this say nothing."""

CLUSTER = Setting("cluster", "FILE")


@dataclass(frozen=True)
class Comparison:
    """What is run now and the best there is for the same GPUs, of one engine.

    `slower` is by what share the former takes longer than the latter, `command` what to start to
    measure the best.
    """

    engine: str
    cluster: str
    present: PricedCandidate
    found: SearchResult
    command: Sentence
    notes: tuple[str, ...]

    @property
    def slower(self) -> float:
        """0.4 where the present one takes 1.4 times as long as the best; 0 where it is the best."""
        best_s = self.found.best.prediction.latency_s
        return max(0.0, self.present.prediction.latency_s / best_s - 1)

    def to_json(self) -> dict[str, Any]:
        """What `import-config` prints."""
        backend, batch = self.found.backend.name, self.found.workload.batch
        now = candidate_json(self.present, backend, batch)
        return {
            "engine": self.engine,
            "model": self.found.spec.name,
            "cluster": self.cluster,
            "workload": self.found.workload.model_dump(),
            "backend": backend,
            "mesh": now["mesh"],
            "latency_s": now["latency_s"],
            "present": now,
            "best": candidate_json(self.found.best, backend, batch),
            "slower": self.slower,
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        return str(self.verdict)

    @property
    def verdict(self) -> Sentence:
        """What is run, what is best and how to measure it, in a line."""
        now, best = self.present, self.found.best
        seconds = f"you run {_named(now)}, predicted {now.prediction.latency_s:.4g} s"
        if self.slower < PREDICTIONS_TELL:
            return Sentence(
                f"{seconds}: none is predicted to be more than {PREDICTIONS_TELL:.0%} faster"
            )
        near = approximation_text(best.quality)
        return Sentence(
            f"{seconds}; {_named(best)} is predicted {1 + self.slower:.3g} times as fast "
            f"({best.prediction.latency_s:.4g} s{', ' + near if near else ''}); "
            "measure: `",
            self.command,
            "`",
        )


def _named(candidate: PricedCandidate) -> str:
    """A mesh and its mode, such as `cfg2 x ulysses4, compile`."""
    one = candidate.configuration
    return ", ".join(
        [str(one.mesh), one.mode, *(["weights in pieces"] if one.weights == "sharded" else [])]
    )


def import_config(
    given: str,
    engine: str,
    cluster: Callable[[], ClusterProfile],
    model: str | None = None,
    gpus: int | None = None,
    asked: Mapping[str, Any] | None = None,
    place: Setting = CLUSTER,
) -> Comparison:
    """Prices the configuration of a file or a command line, and the best for the same GPUs.

    `cluster` is called once the configuration is known to be right. `gpus` says how many ranks are
    started where the configuration doesn't; `asked` are settings of the workload that stand over
    the configuration's; `place` is how a command says which cluster it is.

    Raises:
        InputError: the configuration can't be read, isn't legal, or can't be priced; says why.
    """
    reader = find_engine(engine)
    written = read_text_or_file(given, engine)
    if gpus and written.ranks and gpus != written.ranks:
        raise InputError(
            Setting("gpus", gpus), f": the command starts {written.ranks} ranks; leave it out"
        )
    said = understand(written, reader.words)
    named = model_of(said, model)
    _require_read(written, named, engine)
    around = Surroundings(written.ranks or gpus, guides=named.spec.defaults.passes > 1)
    now = present_of(reader, said, around)
    wanted = workload_of(said, named, engine, asked or {})
    batch = wanted.get("batch", named.spec.defaults.batch)
    now = one_replica(now, reader, batch)
    _require_heads(now.mesh, named, reader, said)
    others = {axis: 1 for axis in AXES if axis not in reader.engine.axes}
    asked_for = {"gpus": now.mesh.size, "backend": engine, **others, **wanted}
    task = task_on_paper(named, cluster(), checked(PlanSettings, asked_for))
    priced, more = _priced(now, task, reader)
    found = search(task)
    more += _by_mode_alone(now, task, reader, found.best)
    tune = Command(
        "tune",
        (
            Setting("model", model or named.spec.name),
            *(Setting(name, value) for name, value in wanted.items()),
            Setting("gpus", now.mesh.size),
            Setting("backend", engine),
            place,
            Setting("out", "plan.json"),
        ),
    )
    export = Command("export", (Setting("plan", "plan.json"), Setting("to", engine)))
    own = _rewritten(found, reader, written, said)
    command = Sentence(own) if own else Sentence(tune, " && ", export)
    return Comparison(reader.name, found.cluster.name, priced, found, command, (*now.notes, *more))


def find_engine(name: str) -> ReadEngine:
    """An engine whose configurations are read.

    Raises:
        InputError: there is none of that name.
    """
    if name not in ENGINES:
        raise InputError(
            f"unknown engine {one_line(repr(name), 60)}; there is {', '.join(ENGINES)}"
        )
    return ENGINES[name]


def _require_read(written: Written, named: NamedModel, engine: str) -> None:
    """Refuses a file that the engine starts without."""
    fields = [one for one in written.settings if not one.is_flag and "field " in one.where]
    if engine != "vllm-omni" or not fields or any(one.name == "pipeline" for one in fields):
        return
    if why := why_no_deploy_file(named.spec.pipeline_class):
        raise InputError(f"{fields[0].where}: {why}; give it as flags")


def one_replica(now: Present, reader: ReadEngine, batch: int) -> Present:
    """A server's data parallelism as what it is: replicas that answer other requests, of which one
    is looked at.
    """
    dp = now.mesh.dp
    if not reader.has_replicas or batch >= dp:
        return now
    note = f"dp {dp}: {dp} replicas, each on {now.mesh.size // dp} GPUs; one is priced, alone"
    mesh = now.mesh.model_copy(update={"dp": 1})
    return replace(now, mesh=mesh, notes=(*now.notes, note))


def _require_heads(mesh: Mesh, named: NamedModel, reader: ReadEngine, said: Understood) -> None:
    """Refuses a ulysses degree that an engine takes and then fails with."""
    heads = named.spec.heads
    if heads % mesh.ulysses and not said.values.get("uneven_heads"):
        fitting = [degree for degree in range(1, mesh.ulysses + 1) if heads % degree == 0]
        raise InputError(
            f"{reader.name}: ulysses {mesh.ulysses} doesn't divide the {heads} heads of "
            f"{named.spec.name}: {reader.name} starts with it and fails in the first step; use "
            f"{fitting[-1]}"
        )


def _priced(
    now: Present, task: Task, reader: ReadEngine
) -> tuple[PricedCandidate, tuple[str, ...]]:
    """The present configuration's price, and what of it the price leaves out.

    Raises:
        InputError: it isn't legal; says why.
    """
    try:
        found = price_one(
            task, now.mesh, now.mode, patches=now.patches, warmup_steps=now.warmup_steps
        )
    except InputError as error:
        raise InputError(f"{reader.name}: what you run isn't legal: ", error.sentence) from None
    one = found.configuration
    notes: tuple[str, ...] = ()
    if one.pipefusion and now.blocks_per_stage:
        blocks, there = sum(now.blocks_per_stage), task.spec.block_count
        if blocks != there:
            raise InputError(
                f"{reader.name}: the stages have {blocks} blocks in all, {task.spec.name} has "
                f"{there}; {reader.name} doesn't look; let them add up to {there}"
            )
        stages = one.pipefusion.model_copy(update={"blocks_per_stage": now.blocks_per_stage})
        one = replace(one, pipefusion=stages)
    weights: Weights = "sharded" if now.is_sharded and one.can_share_weights else "replicated"
    one = replace(one, weights=weights)
    if one != found.configuration:
        found = priced_as_is(task, cost_model_of(task, Topology(task.cluster)), one)
    ring = found.configuration.ring
    if now.mesh.ring > 1 and now.gathers != (ring == "gather"):
        other = "gathered first" if ring == "gather" else "passed on from rank to rank"
        notes = (f"keys and values are priced as {other}",)
    return found, notes


def _by_mode_alone(
    now: Present, task: Task, reader: ReadEngine, best: PricedCandidate
) -> tuple[str, ...]:
    """What the present mesh would take in the best's mode, where both differ: how much of the
    difference is the mesh's.
    """
    mode = best.configuration.mode
    if mode == now.mode or best.configuration.mesh == now.mesh:
        return ()
    alone, _ = _priced(replace(now, mode=mode), task, reader)
    return (f"{now.mesh} in mode {mode} is predicted {alone.prediction.latency_s:.4g} s",)


def _rewritten(
    found: SearchResult, reader: ReadEngine, written: Written, said: Understood
) -> str | None:
    """The user's own command with the best configuration's flags; None if it was no command, or
    starts another number of ranks.
    """
    plan = found.to_plan()
    ranks = written.ranks or plan.mesh.size
    if not written.command or ranks != plan.mesh.size or not reader.has_flags:
        return None
    words = [*written.command]
    for setting in said.others:
        words += [setting.where, *setting.values] if setting.is_flag else []
    for flag, value in reader.engine.configuration_flags(plan):
        words += [flag, *value.split()]
    return shlex.join(words)
