"""`show` says what a file holds, in words and in full."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks.baseline_questions import BASELINE
from benchmarks.planner_predictions import MEASURED as RECORDS
from ditplan import cli
from ditplan.command.files import shown_file
from ditplan.planner.search.journal import open_journal
from ditplan.profiles.book import BookEntry, PlanBook
from ditplan.profiles.catalog import CLUSTERS, DISTANCES, MODELS, find_model
from ditplan.profiles.errors import InputError
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.plan import Measurement, Prediction
from ditplan.profiles.record import NEEDS
from ditplan.study import Study
from tests.distributed.small_models import plan_for, workload

PREDICTED = Prediction(
    latency_s=2.0,
    interval_s=(1.5, 2.5),
    end_to_end_s=3.0,
    setup_s=1.0,
    memory_bytes=7 * 10**9,
    parts={"blocks": 2.0},
    link_bytes={},
    source="computed",
)
MEASURED = Measurement(
    latency_s=2.25, runs_s=(2.2, 2.25, 2.3), measured_on="2026-11-29", devices="2 x CPU"
)


def test_a_plan_says_what_it_does_and_costs(tmp_path: Path) -> None:
    plan = plan_for(find_model("sd3-tiny"), Mesh(cfg=2), workload())
    plan = plan.model_copy(update={"prediction": PREDICTED, "measurement": MEASURED})
    shown = shown_file(plan.save(tmp_path / "plan.json"))
    for words in (
        "plan for sd3-tiny",
        "cfg2, eager",
        "exact",
        "predicted 2 s (1.5 to 2.5 s), 7.0 GB a GPU",
        "measured 2.25 s in 3 runs on 2 x CPU, 2026-11-29",
    ):
        assert words in shown.text
    saved = json.loads((tmp_path / "plan.json").read_text())
    assert shown.fields == {name: value for name, value in saved.items() if name != NEEDS}


def test_a_book_lists_its_plans(tmp_path: Path) -> None:
    small, large = workload(), workload().model_copy(update={"height": 128})
    entries = tuple(
        BookEntry(weight=weight, plan=plan_for(find_model("sd3-tiny"), Mesh(cfg=2), one))
        for weight, one in ((1, small), (3, large))
    )
    shown = shown_file(PlanBook(entries=entries).save(tmp_path / "book.json"))
    assert "book of 2 plans" in shown.text
    assert "other requests are refused" in shown.text
    assert f"weight 3: {large}" in shown.text


def test_what_texts_a_plan_and_a_book_serve_is_shown(tmp_path: Path) -> None:
    plan = plan_for(find_model("qwen-image"), Mesh(cfg=2), workload())
    plan = plan.model_copy(update={"text_sizes": (64, 128)})
    served = "texts of up to 128 tokens, rounded up to 64, 128"
    assert served in shown_file(plan.save(tmp_path / "plan.json")).text
    book = PlanBook(entries=(BookEntry(weight=1, plan=plan),), otherwise="larger")
    shown = shown_file(book.save(tmp_path / "book.json")).text
    assert served in shown
    assert "other requests are served by the nearest larger plan" in shown


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (CLUSTERS / "8xl20-pcie.json", "8 x NVIDIA L20"),
        (MODELS / "sd3.json", "StableDiffusion3Pipeline, 24 blocks"),
        (DISTANCES / "sd3-tiny.json", "measured quality of sd3-tiny"),
        (BASELINE / "4xa100-pcie.json", "baseline of 4xa100-pcie: 43 cases"),
        (BASELINE / "measured.json", "baseline of measured plans: 18 records"),
        (RECORDS / "two-h100" / "sd3-2048x1-as-is.json", "cfg2, compile+graph: 1."),
    ],
)
def test_what_is_shipped_is_shown(path: Path, words: str) -> None:
    shown = shown_file(path)
    assert words in shown.text
    assert json.loads(path.read_text()).keys() - {NEEDS} <= shown.fields.keys()


def test_a_study_says_what_was_measured(tmp_path: Path) -> None:
    import optuna

    folder = tmp_path / "plan.study"
    folder.mkdir()
    journal = Study(folder).journal
    study = optuna.create_study(storage=open_journal(journal), study_name="sd3-abc")
    trial = study.ask()
    trial.set_user_attr("mesh", "cfg2, eager")
    trial.report(1.5, 0)
    trial.report(1.25, 1)
    before = journal.read_bytes()
    shown = shown_file(folder)
    assert "cfg2, eager: running, 1.5, 1.25 s" in shown.text
    assert shown.fields["runs"][0]["runs_s"] == (1.5, 1.25)
    assert shown.fields["cluster"] is None
    assert journal.read_bytes() == before


@pytest.mark.parametrize("text", ["{}", "[1]", "words", '{"runner_ups": {}, "fingerprint": 3}', ""])
def test_what_ditplan_has_not_written_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=r"x\.json"):
        shown_file(tmp_path / "x.json")


def test_a_folder_that_is_no_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no study of a tune"):
        shown_file(tmp_path)


def test_show_and_list_are_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["ditplan", "list", "clusters"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "8xl20-pcie\n" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["ditplan", "show", str(CLUSTERS / "8xl20-pcie.json")])
    with pytest.raises(SystemExit):
        cli.main()
    assert "cluster 8xl20-pcie: 8 devices" in capsys.readouterr().out
