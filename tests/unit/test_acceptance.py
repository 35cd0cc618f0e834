"""What users of engines ask of a planner before they let it into production: twelve tests."""

import dataclasses
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.main import get_command

import ditplan
from ditplan.cli import app
from ditplan.planner.search.journal import recorded_runs
from ditplan.planner.search.policy import MeasurementPolicy, RunResult
from ditplan.planner.search.search import search
from ditplan.planner.search.storage import task_name
from ditplan.planner.task import Task
from ditplan.profiles.catalog import find_cluster, find_model
from ditplan.profiles.cluster import LinkKind
from ditplan.profiles.errors import InputError
from ditplan.profiles.evidence import evidence_of, signature_of
from ditplan.profiles.fingerprint import RankFacts
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.plan import ExecutionPlan
from ditplan.profiles.workload import Workload
from ditplan.runtime.admission.fit import gathered_facts, kind_within_hosts, require_fit
from ditplan.runtime.groups import GroupCache, RankContext
from ditplan.runtime.models.loading import load_pipeline
from ditplan.runtime.native import parallelize
from tests.distributed.small_models import plan_for, small_sd3, workload
from tests.unit.factories import a_plan

SD3, A100S = "sd3", "8xa100-nvlink"


def one_rank() -> RankContext:
    """The context of the only rank there is."""
    return RankContext(0, 1, torch.device("cpu"), GroupCache(0, 1))


def a_task(**changes: Any) -> Task:
    """The usual workload of sd3 on two H100, with changes."""
    spec = find_model(SD3)
    work = Workload.model_validate(spec.defaults.model_dump() | changes)
    return Task(spec, work, find_cluster("2xh100-nvlink"))


def test_explicit_flags_win() -> None:
    best = ditplan.plan(SD3, A100S).plan
    asked = ditplan.plan(SD3, A100S, ring=8, mode="eager").plan
    assert (asked.mesh.ring, asked.mesh.size, asked.configuration.mode) == (8, 8, "eager")
    assert best.prediction is not None
    assert asked.prediction is not None
    # what is asked for is planned although it is slower than what would be chosen
    assert asked.prediction.latency_s > best.prediction.latency_s


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"ulysses": 32, "cluster": "1024xh100"}, "heads"),
        ({"ring": 8, "height": 16, "width": 32}, "tokens"),
        ({"ulysses": 3, "ring": 4}, "needs 12 GPUs, cluster 8xa100-nvlink has 8"),
    ],
)
def test_illegal_head_sequence_and_device_products_are_refused_before_launch(
    asked: dict[str, Any], words: str, tmp_path: Path
) -> None:
    cluster = find_cluster(A100S)
    if asked.pop("cluster", None):
        (host,) = cluster.hosts
        many = host.model_copy(update={"devices": host.devices * 4})
        cluster = cluster.model_copy(update={"hosts": (many,), "collectives": ()})
    with pytest.raises(InputError, match=words):
        ditplan.simulate(SD3, cluster, **asked)


def test_an_exact_signature_selects_the_recorded_plan(tmp_path: Path) -> None:
    mix = tmp_path / "mix.json"
    mix.write_text('[{"weight": 3}, {"weight": 1, "height": 512, "width": 512}]')
    saved = ditplan.plan_book(SD3, A100S, mix).plan.save(tmp_path / "book.json")
    book = ditplan.PlanBook.load(saved)
    signatures = {signature_of(entry.plan) for entry in book.entries}
    assert len(signatures) == 2
    for entry in book.entries:
        assert book.plan_for(entry.workload) == entry.plan
        assert signature_of(book.plan_for(entry.workload)) in signatures


@pytest.mark.parametrize("other", [{"batch": 2}, {"steps": 29}])
def test_another_batch_or_step_count_does_not_reuse_a_recorded_plan(other: dict[str, int]) -> None:
    assert task_name(a_task(**other)) != task_name(a_task())
    changed = a_plan().workload.model_copy(update=other)
    plan = a_plan().model_copy(update={"workload": changed})
    assert signature_of(plan) != signature_of(a_plan())
    saved = json.loads(a_plan().text())
    saved["workload"] |= other
    with pytest.raises(InputError, match="changed by hand"):
        ExecutionPlan.from_json(json.dumps(saved), "plan.json")


def test_stale_model_code_or_device_revisions_fail_closed() -> None:
    here = RankFacts("A100", 80 * 10**9, {"torch": "2.9.0"})
    plan = a_plan()
    assert plan.require_place((here,) * 4, "nvlink") == ()
    with pytest.raises(InputError, match=r"made with torch 2\.9\.0, rank 0 has 2\.9\.1"):
        newer = dataclasses.replace(here, software={"torch": "2.9.1"})
        plan.require_place((newer,) * 4, "nvlink")
    with pytest.raises(InputError, match="made for A100 on rank 3, there is H100"):
        plan.require_place((*(here,) * 3, dataclasses.replace(here, device="H100")), "nvlink")
    with pytest.raises(InputError, match="has config beef; load the right weights"):
        plan.require_model("SD3Transformer2DModel", "beef")


def test_a_failed_quality_gate_removes_a_plan_whatever_its_latency() -> None:
    everything = ditplan.plan("sd3-tiny", "8xl20-pcie", quality="any").found.ranked
    gated = ditplan.plan("sd3-tiny", "8xl20-pcie", quality="1e-6").found.ranked
    fastest = min(everything, key=lambda one: one.prediction.latency_s)
    assert not fastest.configuration.is_exact
    assert fastest.configuration not in {one.configuration for one in gated}
    assert all(one.configuration.is_exact for one in gated)


def test_world_size_1_adds_no_wrappers() -> None:
    pipeline = load_pipeline(small_sd3(), None, torch.device("cpu"), "float32")
    objects = [pipeline, pipeline.scheduler, *pipeline.transformer.modules()]
    before = [(type(one), dict(vars(one))) for one in objects]
    plan = plan_for(small_sd3(), Mesh(), workload())
    with parallelize(pipeline, plan, one_rank()):
        for one, (kind, own) in zip(objects, before, strict=True):
            assert type(one) is kind
            assert vars(one).keys() == own.keys()
        hooks = [
            hook
            for module in pipeline.transformer.modules()
            for hook in (*module._forward_hooks, *module._forward_pre_hooks)
        ]
        assert hooks == []


def test_a_plan_is_json_with_schema_version_and_signature_hash(tmp_path: Path) -> None:
    saved = json.loads(a_plan().save(tmp_path / "plan.json").read_text())
    assert list(saved)[:3] == ["schema_version", "needs_ditplan", "signature"]
    assert saved["schema_version"] == ExecutionPlan.newest_schema
    assert saved["signature"] == signature_of(a_plan())


def test_calibrating_is_a_command_of_its_own() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    options = {option for each in commands["profile"].params for option in each.opts}
    assert {"--hosts", "--model", "--out"} <= options
    # planning by what it wrote starts nothing that could measure
    script = (
        "import sys, ditplan\n"
        f"ditplan.plan({SD3!r}, {A100S!r})\n"
        "print([name for name in sys.modules if name in {'torch', 'ditplan.runtime.ranks.pool'}])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=300
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


@pytest.mark.parametrize(
    ("places", "kind"),
    [
        ([("a", "nvlink"), ("b", "nvlink")], None),
        ([("a", "memory")], None),
        ([("a", "nvlink"), ("a", "nvlink"), ("b", "pcie")], "nvlink"),
        ([("a", "nvlink"), ("a", "pcie")], "pcie"),
        ([("a", "nvlink"), ("a", None), ("b", "pcie")], None),
    ],
)
def test_links_are_those_between_ranks_of_a_host(
    places: list[tuple[str, LinkKind | None]], kind: LinkKind | None
) -> None:
    assert kind_within_hosts(places) == kind


def test_the_selected_plan_its_source_rejected_reasons_and_calibration_digest_are_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    context = one_rank()
    facts, link = gathered_facts(context, (0,), timed=False)
    assert link is None
    plan = ditplan.plan(SD3, "2xh100-nvlink", gpus=1, dtype="float32").plan
    fingerprint = plan.fingerprint.as_found(facts, ())
    with caplog.at_level(logging.INFO, logger="ditplan"):
        require_fit(plan.model_copy(update={"fingerprint": fingerprint}), context)
    (line,) = [one.getMessage() for one in caplog.records if one.name == "ditplan"]
    loser = plan.runner_ups[0]
    assert f"plan {plan.configuration} for sd3" in line
    assert "(computed)" in line
    assert f"second best {loser.configuration} ({loser.reason})" in line
    assert evidence_of(plan.model_copy(update={"fingerprint": fingerprint})) in line


def test_batch_1_and_larger_ones_are_measured(tmp_path: Path) -> None:
    journal = tmp_path / "journal.log"
    batches: list[int] = []

    def run(plan: ExecutionPlan) -> RunResult:
        batches.append(plan.workload.batch)
        assert plan.prediction is not None
        return RunResult(1.2 * plan.prediction.latency_s, 10**9)

    policy = MeasurementPolicy(run, top=1, rounds=1, journal=journal)
    for batch in (1, 4):
        found = search(a_task(batch=batch), policy).to_plan()
        assert found.workload.batch == batch
        assert found.measurement is not None
    assert set(batches) == {1, 4}
    assert len({one.study for one in recorded_runs(journal)}) == 2


def test_plans_of_replicas_are_chosen_where_throughput_is_asked_for() -> None:
    found = ditplan.plan(SD3, A100S, objective="throughput").found
    best = found.best
    assert best.replicas > 1
    assert best.replicas * best.configuration.mesh.size <= 8
    one_copy = [one for one in found.ranked if one.configuration.mesh.size == 8]
    figures = [one.figures(1).throughput_per_s for one in one_copy]
    assert best.figures(1).throughput_per_s >= max(figures)
