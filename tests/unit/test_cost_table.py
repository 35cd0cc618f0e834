"""`table` says of each plan of a book what N steps take."""

import json
import sys
from pathlib import Path

import pytest

from ditplan import cli
from ditplan.cost_table import cost_table
from ditplan.planner.network.topology import Topology
from ditplan.planner.search.pricing import cost_model_of, priced_as_is
from ditplan.planner.search.search import search
from ditplan.planner.task import Task, TuneRequest
from ditplan.profiles.book import BookEntry, PlanBook
from ditplan.profiles.catalog import find_cluster, find_model
from ditplan.profiles.errors import InputError
from ditplan.profiles.plan import ExecutionPlan, Measurement, Prediction
from tests.unit.json_page import documented

CLUSTER = find_cluster("4xa100-pcie")
SD3 = find_model("sd3")


def planned(quality: str) -> ExecutionPlan:
    request = TuneRequest(SD3, known=lambda workload: None, quality=quality)
    return search(request.task(SD3.defaults, CLUSTER)).to_plan()


PLANS = {quality: planned(quality) for quality in ("exact", "safe", "any")}


def book_of(plan: ExecutionPlan) -> PlanBook:
    return PlanBook(entries=(BookEntry(weight=1, plan=plan),))


def priced(plan: ExecutionPlan, steps: int) -> Prediction:
    workload = plan.workload.model_copy(update={"steps": steps})
    task = Task(SD3, workload, CLUSTER)
    model = cost_model_of(task, Topology(CLUSTER))
    return priced_as_is(task, model, plan.configuration).prediction


def test_there_is_a_plan_of_each_kind() -> None:
    exact, staged, cached = (PLANS[name].configuration for name in ("exact", "safe", "any"))
    assert exact.is_exact
    assert staged.pipefusion is not None
    assert cached.step_cache is not None


@pytest.mark.parametrize("quality", PLANS)
@pytest.mark.parametrize("steps", [28, 40, 100])
def test_a_call_of_any_number_of_steps_takes_what_the_row_says(quality: str, steps: int) -> None:
    (row,) = cost_table(book_of(PLANS[quality]))
    expected = priced(PLANS[quality], steps).end_to_end_s
    # a step cache leaves out a step or two more or less
    off = 0.06 if quality == "any" else 1e-3
    assert row.fixed_s + steps * row.step_s == pytest.approx(expected, rel=off)
    assert row.gpus == PLANS[quality].mesh.size


def test_what_was_measured_counts(tmp_path: Path) -> None:
    plan = PLANS["safe"]
    assert plan.prediction is not None
    twice = Measurement(
        latency_s=2 * plan.prediction.latency_s, runs_s=(1.0,), measured_on="", devices=""
    )
    (before,), (after,) = (
        cost_table(book_of(one)) for one in (plan, plan.model_copy(update={"measurement": twice}))
    )
    assert after.step_s == pytest.approx(2 * before.step_s)
    assert (before.figures, after.figures) == ("predicted", "measured")


def test_a_plan_without_numbers_or_a_known_cluster_is_refused() -> None:
    bare = PLANS["safe"].model_copy(update={"prediction": None})
    with pytest.raises(InputError, match="has no numbers"):
        cost_table(book_of(bare))
    mine = PLANS["safe"].fingerprint.model_copy(update={"cluster": "mine"})
    with pytest.raises(InputError, match="mine is no recorded cluster"):
        cost_table(book_of(PLANS["safe"].model_copy(update={"fingerprint": mine})))


def test_the_command_prints_what_is_documented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    book = book_of(PLANS["exact"]).save(tmp_path / "book.json")
    monkeypatch.setattr(sys, "argv", ["ditplan", "table", "--book", str(book), "--json"])
    with pytest.raises(SystemExit):
        cli.main()
    found = json.loads(capsys.readouterr().out)
    (row,) = found["rows"]
    assert found.keys() | row.keys() | row["shape"].keys() == documented("table")
