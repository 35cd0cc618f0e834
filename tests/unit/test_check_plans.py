"""`check --plans` holds saved plans against the planner of today."""

from pathlib import Path
from typing import Any

import pytest

from ditplan.checking.check import check
from ditplan.checking.comparing import Bounds, Verdict
from ditplan.planner.search.search import search
from ditplan.planner.task import TuneRequest
from ditplan.profiles.book import BookEntry, PlanBook
from ditplan.profiles.catalog import find_cluster, find_model
from ditplan.profiles.errors import InputError
from ditplan.profiles.plan import ExecutionPlan, Measurement

CLUSTER = find_cluster("4xa100-pcie")
SD3 = find_model("sd3")
FOUND = search(
    TuneRequest(SD3, known=lambda workload: None, quality="exact").task(SD3.defaults, CLUSTER)
)
PLAN = FOUND.to_plan()


def silent(message: str) -> None:
    """Says nothing."""


def verdict_on(tmp_path: Path, plan: ExecutionPlan) -> Verdict:
    plan.save(tmp_path / "mine.json")
    (verdict,) = check(None, tmp_path, Bounds(), say=silent).verdicts
    return verdict


def changed(**changes: Any) -> ExecutionPlan:
    return PLAN.model_copy(update=changes)


def test_a_plan_of_today_passes(tmp_path: Path) -> None:
    verdict = verdict_on(tmp_path, PLAN)
    assert (verdict.name, verdict.status, verdict.faults) == ("plans: mine", "same", ())
    assert verdict.regret == 0


def test_a_plan_that_is_far_from_the_best_fails(tmp_path: Path) -> None:
    place = next(
        place
        for place, one in enumerate(FOUND.ranked)
        if one.configuration.mesh.size == 4
        and one.prediction.latency_s > 1.2 * FOUND.best.prediction.latency_s
    )
    verdict = verdict_on(tmp_path, FOUND.to_plan(place))
    assert verdict.status == "failed"
    assert verdict.faults[0].startswith("regret: ")
    assert verdict.regret is not None
    assert verdict.regret > 0.2


def test_an_old_prediction_is_told(tmp_path: Path) -> None:
    assert PLAN.prediction is not None
    twice = PLAN.prediction.model_copy(update={"latency_s": 2 * PLAN.prediction.latency_s})
    verdict = verdict_on(tmp_path, changed(prediction=twice))
    assert (verdict.status, verdict.faults) == ("drifted", ())
    assert verdict.drift == pytest.approx(0.5)


def test_a_fingerprint_that_means_other_devices_fails(tmp_path: Path) -> None:
    devices = ("NVIDIA A100", "T4", *PLAN.fingerprint.devices[2:])
    other = PLAN.fingerprint.model_copy(update={"devices": devices, "link_kinds": ("nvlink",)})
    faults = verdict_on(tmp_path, changed(fingerprint=other)).faults
    assert "on rank 0" in faults[0]
    assert "links are nvlink" in faults[1]


def test_a_model_of_another_config_fails(tmp_path: Path) -> None:
    (transformer,) = PLAN.model.transformers
    other = transformer.model_copy(update={"config_hash": "0" * 16})
    model = PLAN.model.model_copy(update={"transformers": (other,)})
    assert "config 0000" in verdict_on(tmp_path, changed(model=model)).faults[0]


def test_measured_pairs_that_lose_their_order_fail(tmp_path: Path) -> None:
    """The plan was measured slower than a runner-up that was predicted slower, then."""
    assert PLAN.prediction is not None
    second = PLAN.runner_ups[-1]
    plan = changed(
        measurement=Measurement(latency_s=2.0, runs_s=(2.0,), measured_on="", devices=""),
        prediction=PLAN.prediction.model_copy(update={"latency_s": 2.0}),
        runner_ups=(second.model_copy(update={"measured_s": 1.0, "predicted_s": 1.0}),),
    )
    assert any("order: " in fault for fault in verdict_on(tmp_path, plan).faults)


def test_a_plan_for_an_unknown_cluster_is_not_priced_and_says_so(tmp_path: Path) -> None:
    other = PLAN.fingerprint.model_copy(update={"cluster": "mine2"})
    verdict = verdict_on(tmp_path, changed(fingerprint=other))
    assert verdict.notes[0].startswith("not priced")
    CLUSTER.model_copy(update={"name": "mine2"}).save(tmp_path / "mine2.json")
    (verdict,) = check(None, tmp_path, Bounds(), say=silent).verdicts
    assert (verdict.status, verdict.notes) == ("same", ())


def test_a_damaged_plan_fails_and_others_are_checked(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text('{"fingerprint": 3}')
    PlanBook(entries=(BookEntry(weight=1, plan=PLAN),)).save(tmp_path / "book.json")
    bad, good = check(None, tmp_path, Bounds(), say=silent).verdicts
    assert (bad.status, good.status) == ("failed", "same")
    assert "bad.json" in bad.faults[0]


def test_a_folder_without_plans_is_refused(tmp_path: Path) -> None:
    CLUSTER.save(tmp_path / "cluster.json")
    with pytest.raises(InputError, match="none of its"):
        check(None, tmp_path, Bounds(), say=silent)
    with pytest.raises(InputError, match="name a folder"):
        check(None, None, Bounds(), say=silent)
