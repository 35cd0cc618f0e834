"""What `--json` prints is what docs/json.md says: all of it, and nothing else."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from ditplan import cli
from tests.unit.json_page import documented

ON_PAPER = ["--model", "sd3", "--cluster", "4xa100-pcie"]


OF_TUNE = {
    *("corrected_s", "measured_s", "replicas", "loaded_latency_s", "throughput_per_s"),
    *("baseline", "reason"),
}


@pytest.fixture(autouse=True)
def _in_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> dict[str, Any]:
    """The object that a command prints."""
    monkeypatch.setattr(sys, "argv", ["ditplan", *arguments, "--json"])
    with pytest.raises(SystemExit):
        cli.main()
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def test_tune_prints_what_is_documented(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = printed(monkeypatch, capsys, "tune", *ON_PAPER)
    assert found.keys() | {"report"} == documented("tune")
    for candidate in (found["best"], found["alternatives"][-1], found["pareto"][0]):
        assert candidate.keys() == documented("A candidate")
        assert sum(candidate["parts"].values()) == pytest.approx(candidate["latency_s"])
    assert (found["model"], found["cluster"]) == ("sd3", "4xa100-pcie")
    assert found["workload"]["height"] == 1024


def test_a_mix_prints_what_is_documented(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "mix.json").write_text('[{"weight": 1}, {"weight": 2, "height": 512}]')
    asked = ["--mode", "graph", "--workloads", "mix.json"]
    found = printed(monkeypatch, capsys, "tune", *ON_PAPER, *asked)
    assert found.keys() == documented("tune --workloads")
    assert found["workloads"][0]["best"].keys() == documented("A candidate")


def test_simulate_prints_what_is_documented(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = printed(monkeypatch, capsys, "simulate", *ON_PAPER, "--cfg", "2", "--trace", "t.json")
    own = documented("A candidate") - OF_TUNE
    assert found.keys() == own | documented("simulate")
    assert found["breakdown"] == found["parts"]


@pytest.mark.parametrize("quality", ["exact", "safe"])
def test_what_tune_writes_agrees_with_what_it_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], quality: str
) -> None:
    found = printed(monkeypatch, capsys, "tune", *ON_PAPER, "--quality", quality)
    shown = printed(monkeypatch, capsys, "show", found["plan"])
    assert shown["prediction"]["parts"] == found["best"]["parts"]
    assert shown["quality"]["exact"] == found["best"]["exact"]
    assert shown["workload"] == found["workload"]


def test_a_new_cluster_prints_what_is_documented(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--gpus", "1x2", "--device", "l4", "--intra", "pcie", "--out", "c.json"]
    found = printed(monkeypatch, capsys, "cluster", "new", *asked)
    assert found.keys() == documented("cluster new")


@pytest.mark.parametrize("what", ["models", "clusters", "families"])
def test_list_prints_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    found = printed(monkeypatch, capsys, "list", what)
    assert found.keys() == documented("list")
    known = {"models": "sd3", "clusters": "8xl20-pcie", "families": "flux"}
    assert known[what] in found["names"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["tune", *ON_PAPER, "--height", "1000"],
        ["tune"],
        ["simulate", *ON_PAPER, "--mode", "fast"],
        ["show", "no.json"],
        ["dance"],
    ],
)
def test_an_error_is_an_object_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["ditplan", *arguments, "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found.keys() == documented("An error")
    assert found["exit_code"] == ended.value.code == 2
    assert said.err == f"error: {found['error']}\n"
