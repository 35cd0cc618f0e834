"""`run --trace` records what each of several ranks did, and a report shows it."""

import json
import sys
from pathlib import Path

import pytest

from ditplan import cli
from ditplan.profiles.catalog import find_model
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.plan import PlannedModel, bare_plan
from ditplan.reporting.timeline_figures import rows_of


def test_phases_of_all_ranks_are_recorded_with_their_exchanges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = find_model("sd3-tiny")
    workload = spec.defaults.model_copy(update={"steps": 3, "dtype": "float32"})
    plan = bare_plan(PlannedModel.of_spec(spec), workload, Mesh(ulysses=2))
    plan = plan.model_copy(update={"on_mismatch": "warn"})
    plan.save(tmp_path / "plan.json")
    words = ["run", "--plan", "plan.json", "--prompt", "a red circle", "--out", "i.png"]
    monkeypatch.setattr(sys, "argv", ["ditplan", *words, "--trace", "t.json", "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr()
    assert not ended.value.code, printed.err
    assert json.loads(printed.out)["trace"] == "t.json"
    rows = rows_of((tmp_path / "t.json").read_text(), "t.json", 3).rows
    assert list(rows) == [
        *("rank 0 (ulysses 0)", "rank 1 (ulysses 1)"),
        *("exchanges of rank 0", "exchanges of rank 1"),
    ]
    for name, slices in rows.items():
        categories = {one.category for one in slices}
        wanted = {"compute", "attention", "scheduler"} if name.startswith("rank ") else {"ulysses"}
        assert wanted <= categories, name
        assert all(one.start_s >= 0 and one.seconds >= 0 for one in slices)
