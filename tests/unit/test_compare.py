"""`compare` tells what differs between two of a kind from what may be noise."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from ditplan import cli
from ditplan.explaining.contrast import Difference, contrast
from ditplan.planner.network.scaled_links import with_links_scaled
from ditplan.planner.search.policy import MeasurementPolicy, RunResult
from ditplan.planner.search.search import search
from ditplan.planner.task import TuneRequest
from ditplan.profiles.catalog import find_cluster, find_model
from ditplan.profiles.errors import InputError
from ditplan.profiles.plan import ExecutionPlan, Measurement
from tests.unit.json_page import documented

SD3, CLUSTER = find_model("sd3"), find_cluster("4xa100-pcie")
REQUEST = TuneRequest(SD3, known=lambda workload: None, quality="exact")
TASK = REQUEST.task(SD3.defaults, CLUSTER)
RECORDS = Path(__file__).parents[2] / "benchmarks" / "measured"


@pytest.fixture(scope="module")
def plan() -> ExecutionPlan:
    return search(TASK).to_plan()


def compared(a: Path, b: Path) -> dict[str, Difference]:
    return {part.part: part for part in contrast(a, b).parts}


def measured(plan: ExecutionPlan, *runs_s: float) -> ExecutionPlan:
    found = Measurement(latency_s=runs_s[0], runs_s=runs_s, measured_on="now", devices="a")
    return plan.model_copy(update={"measurement": found})


def test_a_file_compared_with_itself_differs_in_nothing(
    plan: ExecutionPlan, tmp_path: Path
) -> None:
    a = plan.save(tmp_path / "a.json")
    c = CLUSTER.save(tmp_path / "c.json")
    record = next(RECORDS.glob("*/*.json"))
    for path in (a, c, record):
        found = contrast(path, path)
        assert found.parts
        assert all(part.is_noise for part in found.parts)
        assert "nothing differs" in str(found)


@pytest.mark.parametrize(("runs_s", "is_noise"), [((1.0, 1.3), True), ((1.4, 1.5), False)])
def test_measured_times_differ_where_their_runs_do_not_overlap(
    plan: ExecutionPlan, tmp_path: Path, runs_s: tuple[float, ...], is_noise: bool
) -> None:
    a = measured(plan, 1.1, 1.2).save(tmp_path / "a.json")
    b = measured(plan, *runs_s).save(tmp_path / "b.json")
    parts = compared(a, b)
    assert parts["measured latency"].is_noise == is_noise
    assert parts["predicted latency"].is_noise


def test_another_plan_of_the_task_is_told_apart_part_by_part(
    plan: ExecutionPlan, tmp_path: Path
) -> None:
    other = search(TASK).to_plan(index=3)
    a, b = plan.save(tmp_path / "a.json"), other.save(tmp_path / "b.json")
    parts = compared(a, b)
    assert not parts["configuration"].is_noise
    assert (parts["configuration"].a, parts["configuration"].b) == (
        str(plan.configuration),
        str(other.configuration),
    )
    assert parts["model"].is_noise
    assert plan.prediction is not None
    assert other.prediction is not None
    change = other.prediction.latency_s / plan.prediction.latency_s - 1
    assert parts["predicted latency"].change == pytest.approx(change)


@pytest.mark.parametrize(("times", "is_noise"), [(1.02, True), (1.5, False)])
def test_links_of_other_bandwidth_differ_beyond_noise(
    tmp_path: Path, times: float, is_noise: bool
) -> None:
    a = CLUSTER.save(tmp_path / "a.json")
    b = with_links_scaled(CLUSTER, "pcie", times).save(tmp_path / "b.json")
    parts = compared(a, b)
    assert parts["pcie bandwidth, median"].is_noise == is_noise
    assert parts["pcie bandwidth, median"].change == pytest.approx(times - 1)
    assert parts["devices"].is_noise


def test_studies_are_compared_by_the_runs_of_their_plans(tmp_path: Path) -> None:
    for name, times in (("a", 1.0), ("b", 1.5)):
        folder = tmp_path / f"{name}.study"
        folder.mkdir()

        def took(plan: ExecutionPlan, times: float = times) -> RunResult:
            assert plan.prediction is not None
            return RunResult(times * plan.prediction.latency_s)

        search(TASK, MeasurementPolicy(took, top=2, rounds=2, journal=folder / "journal.log"))
    parts = compared(tmp_path / "a.study", tmp_path / "b.study")
    plans = [part for name, part in parts.items() if name.startswith("plan ")]
    assert plans
    assert all(not part.is_noise for part in plans)
    assert {round(part.change or 0, 3) for part in plans if part.a and part.b} == {0.5}


def test_two_kinds_and_what_is_none_are_refused(plan: ExecutionPlan, tmp_path: Path) -> None:
    a = plan.save(tmp_path / "a.json")
    b = CLUSTER.save(tmp_path / "b.json")
    with pytest.raises(InputError, match=r"is a plan, .* a cluster profile; compare two of one"):
        contrast(a, b)
    with pytest.raises(InputError, match="this is a folder"):
        contrast(a, tmp_path)
    with pytest.raises(InputError, match="no study of a tune"):
        contrast(tmp_path, tmp_path)
    spec = SD3.save(tmp_path / "m.json")
    with pytest.raises(InputError, match="isn't compared; studies, plans, cluster profiles"):
        contrast(spec, spec)


def test_the_command_prints_what_is_documented(
    plan: ExecutionPlan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = str(plan.save(tmp_path / "a.json"))
    monkeypatch.setattr(sys, "argv", ["ditplan", "compare", path, path, "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert {*printed, *printed["parts"][0]} == documented("compare") | {"a", "b"}
