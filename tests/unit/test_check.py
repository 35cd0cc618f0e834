"""`check` fails where a recorded plan was lost or got worse, and says what else moved."""

import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from benchmarks.baseline_questions import BASELINE
from ditplan import cli
from ditplan.checking.check import CHANGES, check
from ditplan.checking.comparing import Bounds, Verdict
from ditplan.checking.folder import loaded
from ditplan.checking.replanning import replanned
from ditplan.checking.reports import CheckResult, junit
from ditplan.profiles.baseline import (
    Answer,
    Baseline,
    MeasuredBaseline,
    RecordedCase,
    RecordedForecasts,
    RecordedPlan,
)
from ditplan.profiles.catalog import cluster_names, find_cluster, model_names
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.errors import InputError
from ditplan.profiles.measured_plans import MeasuredPlans
from ditplan.profiles.mesh import Mesh
from tests.unit.json_page import documented

MEASURED = BASELINE.parent / "measured" / "two-h100"
CLUSTER = "2xh100-nvlink"
SD3 = RecordedCase(model="sd3")
ANSWER = replanned(SD3, find_cluster(CLUSTER)).answer


def silent(message: str) -> None:
    """Says nothing."""


def folder_with(tmp_path: Path, answer: Answer | None, cluster: str = CLUSTER) -> Path:
    """A baseline of one case."""
    case = SD3.model_copy(update={"answer": answer})
    Baseline(cluster=cluster, cases=(case,)).save(tmp_path / "file.json")
    return tmp_path


def verdict_of(tmp_path: Path, answer: Answer | None, cluster: str = CLUSTER) -> Verdict:
    """What the check says of a recorded answer."""
    folder = folder_with(tmp_path, answer, cluster)
    (verdict,) = check(folder, None, Bounds(), say=silent).verdicts
    return verdict


def with_plans(*plans: RecordedPlan) -> Answer:
    return ANSWER.model_copy(update={"plans": plans, "ranked": min(4, len(plans))})


def scaled(plan: RecordedPlan, factor: float) -> RecordedPlan:
    return plan.model_copy(update={"latency_s": plan.latency_s * factor})


def test_what_was_recorded_is_found_again(tmp_path: Path) -> None:
    verdict = verdict_of(tmp_path, ANSWER)
    assert (verdict.status, verdict.faults, verdict.drift) == ("same", (), 0.0)


def test_an_update_writes_the_same_bytes_every_time(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, None)
    found = []
    for _ in range(2):
        check(folder, None, Bounds(), update=True, say=silent)
        found.append((folder / "file.json").read_bytes())
    assert found[0] == found[1]
    assert Baseline.load(folder / "file.json").cases[0].answer == ANSWER


def test_an_update_says_what_it_changed(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, with_plans(*(scaled(one, 2) for one in ANSWER.plans)))
    check(folder, None, Bounds(), update=True, say=silent)
    page = (folder / CHANGES).read_text()
    assert "file: sd3" in page
    assert "prices moved by up to 50%" in page


def test_a_choice_that_costs_more_by_the_recorded_prices_fails(tmp_path: Path) -> None:
    """As if the best of today had cost a tenth more, and the next one had been chosen."""
    first, second, *rest = ANSWER.plans
    verdict = verdict_of(tmp_path, with_plans(second, scaled(first, 1.2), *rest))
    assert verdict.status == "failed"
    assert verdict.regret == pytest.approx(1.2 * first.latency_s / second.latency_s - 1)
    assert "regret" in verdict.faults[0]


def test_a_worse_choice_within_either_bound_passes(tmp_path: Path) -> None:
    first, second, *rest = ANSWER.plans
    folder = folder_with(tmp_path, with_plans(second, scaled(first, 1.2), *rest))
    for bounds in (Bounds(percent=50), Bounds(seconds=50)):
        (verdict,) = check(folder, None, bounds, say=silent).verdicts
        assert (verdict.status, verdict.faults) == ("changed", ())


def test_a_choice_that_was_not_recorded_costs_at_least_the_last_in_order(tmp_path: Path) -> None:
    verdict = verdict_of(tmp_path, with_plans(ANSWER.plans[1], scaled(ANSWER.plans[2], 3)))
    assert verdict.regret == pytest.approx(
        3 * ANSWER.plans[2].latency_s / ANSWER.plans[1].latency_s - 1
    )
    assert "at least" in verdict.faults[0]


def test_a_better_plan_that_the_search_misses_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search that leaves the fastest out: by today's own prices the recorded one is better."""
    from ditplan.checking import replanning
    from ditplan.planner.search.search import search

    def blind(task: Any) -> Any:
        found = search(task)
        slow = [one for one in found.ranked if one.configuration.mesh.size == 1]
        return type(found)(**{**vars(found), "ranked": tuple(slow)})

    monkeypatch.setattr(replanning, "search", blind)
    verdict = verdict_of(tmp_path, ANSWER)
    assert any(fault.startswith("missed: cfg2") for fault in verdict.faults)


def test_a_price_that_depends_on_what_was_priced_before_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ditplan.checking import replanning
    from ditplan.planner.search.pricing import priced_as_is

    def later(task: Any, model: Any, configuration: Configuration) -> Any:
        found = priced_as_is(task, model, configuration)
        dearer = found.prediction.model_copy(
            update={"latency_s": found.prediction.latency_s * (1 + 1e-6)}
        )
        return type(found)(**{**vars(found), "prediction": dearer})

    monkeypatch.setattr(replanning, "priced_as_is", later)
    verdict = verdict_of(tmp_path, ANSWER)
    assert "alone" in verdict.faults[0]


def test_a_plan_that_is_not_legal_any_more_fails(tmp_path: Path) -> None:
    four = RecordedPlan(
        configuration=Configuration(Mesh(ulysses=4), (0, 1, 2, 3)), latency_s=1, memory_bytes=1
    )
    verdict = verdict_of(tmp_path, with_plans(*ANSWER.plans, four))
    assert verdict.status == "failed"
    assert verdict.faults[0].startswith("lost: ulysses4")


def test_a_host_with_less_memory_loses_its_plans(tmp_path: Path) -> None:
    cluster = find_cluster(CLUSTER)
    (tmp_path / "hosts").mkdir()
    path = cluster.save(tmp_path / "hosts" / "mine.json")
    folder = tmp_path / "baseline"
    folder.mkdir()
    folder_with(folder, None, "../hosts/mine.json")
    check(folder, None, Bounds(), update=True, say=silent)
    (host,) = cluster.hosts
    device = host.devices[0].model_copy(update={"memory_bytes": 10**9})
    smaller = host.model_copy(update={"devices": (device, device)})
    cluster.model_copy(update={"hosts": (smaller,)}).save(path)
    result = check(folder, None, Bounds(), say=silent)
    assert result.verdicts[0].faults[0].startswith("lost: there is no plan any more")
    assert "isn't what its cases were recorded for" in result.notes[0]


def test_clear_pairs_in_another_order_fail(tmp_path: Path) -> None:
    first, *rest = ANSWER.plans
    slow = rest[-1]
    turned = scaled(slow, first.latency_s / slow.latency_s / 10)
    answer = with_plans(first, *rest[:-1], turned)
    verdict = verdict_of(tmp_path, answer)
    assert any(fault.startswith("order: ") for fault in verdict.faults)


def test_prices_that_move_together_are_told_and_pass(tmp_path: Path) -> None:
    verdict = verdict_of(tmp_path, with_plans(*(scaled(one, 1.5) for one in ANSWER.plans)))
    assert (verdict.status, verdict.faults) == ("drifted", ())
    assert verdict.drift == pytest.approx(1 / 3)


def test_a_part_of_the_time_that_is_gone_fails(tmp_path: Path) -> None:
    parts = ANSWER.parts | {"gather": 0.01, "launch": 1e-9}
    verdict = verdict_of(tmp_path, ANSWER.model_copy(update={"parts": parts}))
    assert [fault.split(" of ")[0] for fault in verdict.faults] == ["dropped: gather took 0.01 s"]


def test_a_plan_that_did_not_fit_and_does_fails(tmp_path: Path) -> None:
    refused = ANSWER.plans[-1].model_copy(update={"fits": False})
    verdict = verdict_of(tmp_path, with_plans(*ANSWER.plans[:-1], refused))
    assert [fault.split(":")[0] for fault in verdict.faults] == ["gained"]
    none = Answer(given=ANSWER.given, refused="fits on no device")
    assert "gained: there was no plan" in verdict_of(tmp_path, none).faults[0]


def test_a_wrong_question_is_refused_by_name(tmp_path: Path) -> None:
    case = RecordedCase(model="sd3", asked={"heigth": 3})
    Baseline(cluster=CLUSTER, cases=(case,)).save(tmp_path / "file.json")
    with pytest.raises(InputError, match=r"case sd3 heigth=3"):
        check(tmp_path, None, Bounds(), update=True, say=silent)


def test_wrong_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no"):
        check(tmp_path, None, Bounds(), say=silent)
    folder_with(tmp_path, None, "mars.json")
    with pytest.raises(InputError, match=r"file\.json: field cluster"):
        check(tmp_path, None, Bounds(), say=silent)


def record(tmp_path: Path) -> RecordedForecasts:
    """A measured record with today's predictions."""
    entry = RecordedForecasts(file=str(MEASURED / "sd3-2048x1-as-is.json"))
    MeasuredBaseline(records=(entry,)).save(tmp_path / "measured.json")
    check(tmp_path, None, Bounds(), update=True, say=silent)
    (found,) = MeasuredBaseline.load(tmp_path / "measured.json").records
    return found


def on_record(tmp_path: Path, entry: RecordedForecasts) -> Verdict:
    MeasuredBaseline(records=(entry,)).save(tmp_path / "measured.json")
    (verdict,) = check(tmp_path, None, Bounds(), say=silent).verdicts
    return verdict


def test_predictions_further_from_what_was_measured_fail(tmp_path: Path) -> None:
    entry = record(tmp_path)
    assert on_record(tmp_path, entry).status == "same"
    runs = {run.candidate: run for run in MeasuredPlans.load(entry.file).runs}
    right = tuple(
        one.model_copy(update={"predicted_s": runs[one.plan].median_s, "computed_s": 1e-3})
        for one in entry.forecasts
    )
    faults = on_record(tmp_path, entry.model_copy(update={"forecasts": right})).faults
    assert [fault.split(",")[0] for fault in faults] == [
        "error: with blocks measured 0.00% off in the mean"
    ]
    far = tuple(one.model_copy(update={"predicted_s": 99.0}) for one in entry.forecasts)
    assert on_record(tmp_path, entry.model_copy(update={"forecasts": far})).status == "drifted"


def test_memory_further_from_what_was_measured_fails(tmp_path: Path) -> None:
    entry = record(tmp_path)
    runs = {run.candidate: run for run in MeasuredPlans.load(entry.file).runs}
    right = tuple(
        one.model_copy(update={"loop_bytes": runs[one.plan].memory_bytes or one.loop_bytes})
        for one in entry.forecasts
    )
    faults = on_record(tmp_path, entry.model_copy(update={"forecasts": right})).faults
    assert len(faults) == 1
    assert faults[0].startswith("memory: 0.00% off")


def printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[object, str]:
    """The exit code of a command, and what it prints."""
    monkeypatch.setattr(sys, "argv", ["ditplan", "check", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code, capsys.readouterr().out


def test_the_command_ends_with_1_where_a_case_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, *rest = ANSWER.plans
    folder = str(folder_with(tmp_path, with_plans(second, scaled(first, 1.2), *rest)))
    asked = ("--baseline", folder, "--junit", str(tmp_path / "out.xml"))
    code, out = printed(monkeypatch, capsys, *asked, "--json")
    found = json.loads(out)
    assert (code, found["passed"], found["failed"]) == (1, 0, 1)
    assert found.keys() | found["cases"][0].keys() == documented("check")
    case = ElementTree.parse(tmp_path / "out.xml").getroot().find("testsuite/testcase/failure")
    assert case is not None
    assert case.get("message") == found["cases"][0]["faults"][0]
    code, out = printed(monkeypatch, capsys, *asked, "--seconds", "9")
    assert code in (0, None)
    assert "1 changed" in out


def test_junit_holds_whatever_names_say() -> None:
    odd = Verdict("a<b: \x01\"&'", "failed", ("<&>\x00",), ("]]>",))
    root = ElementTree.fromstring(junit(CheckResult((odd,))))
    assert root.find("testsuite/testcase/failure") is not None


def test_the_project_s_own_baseline_has_a_case_for_each_model_on_each_cluster() -> None:
    cases = 0
    for cluster in cluster_names():
        baseline = Baseline.load(BASELINE / f"{cluster}.json")
        cases += len(baseline.cases)
        assert {case.model for case in baseline.cases} == set(model_names())
        assert all(case.answer for case in baseline.cases)
    assert cases >= 200


@pytest.mark.parametrize("path", sorted(BASELINE.glob("*.json")), ids=lambda path: path.stem)
def test_the_project_s_own_baseline_is_written_as_it_is_read(path: Path) -> None:
    assert loaded(path).baseline.text() == path.read_text()
