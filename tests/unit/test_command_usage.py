"""What typer finds wrong, and what is refused before any rank is started: one line, exit 2."""

import sys
from pathlib import Path

import pytest

from ditplan import cli
from ditplan.profiles.catalog import shipped_weights

TUNE = ["tune", "--model", "sd3", "--cluster", "8xa100-nvlink", "--out", "plan.json"]
SIMULATE = ["simulate", "--model", "sd3", "--cluster", "8xa100-nvlink"]

WRONG = {
    "unknown command": (["dance"], "'dance'"),
    "missing option": (["tune"], "'--model'"),
    "option without value": (["simulate", "--model"], "'--model' requires an argument"),
    "option like another": ([*SIMULATE, "--ulyses", "2"], "--ulysses"),
    "stray word": ([*SIMULATE, "fast"], "(fast)"),
    "size in words": ([*TUNE, "--height", "tall"], "'--height'"),
    "no ranks": ([*SIMULATE, "--ulysses", "0"], "greater than or equal to 1"),
    "fewer than no ranks": ([*SIMULATE, "--ring", "-2"], "greater than or equal to 1"),
    "unknown dtype": ([*SIMULATE, "--dtype", "int3"], "'float32', 'bfloat16', 'float16'"),
    "unknown mode": ([*TUNE, "--mode", "fast"], "'eager', 'compile', 'graph', 'compile+graph'"),
    "unknown objective": ([*TUNE, "--objective", "beauty"], "'latency', 'throughput', 'gpus'"),
    "bound below nothing": (
        [*TUNE, "--objective", "gpus", "--max-latency", "-1"],
        "greater than or equal to 0",
    ),
    "budget that is no number": ([*TUNE, "--budget", "nan"], "greater than or equal to 0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_usage_ends_with_one_line_that_points_to_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, case: str
) -> None:
    arguments, words = WRONG[case]
    error = refused(monkeypatch, capsys, tmp_path, arguments)
    assert words in error
    assert error.endswith("; see --help\n")


RESUMING = {
    "resume without a plan": (["tune", "--resume"], "--resume goes on from a plan: give --plan"),
    "plan without resume": (["tune", "--plan", "p.json"], "to go on from: give --resume"),
    "resume with a workload": (
        ["tune", "--resume", "--plan", "p.json", "--steps", "3"],
        "--steps 3: a plan that is resumed is run again as it is",
    ),
    "resume on paper": (
        ["tune", "--resume", "--plan", "p.json", "--cluster", "8xa100-nvlink"],
        "--cluster 8xa100-nvlink: a plan that is resumed is run again",
    ),
}


@pytest.mark.parametrize("case", RESUMING)
def test_what_makes_no_sense_where_a_plan_is_resumed_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, case: str
) -> None:
    arguments, words = RESUMING[case]
    assert words in refused(monkeypatch, capsys, tmp_path, arguments)


REFRESHING = {
    "refresh on paper": (
        ["tune", "--model", "sd3", "--cluster", "8xa100-nvlink", "--refresh"],
        "--cluster plans for a cluster on paper; to measure one give --hosts alone",
    ),
    "refresh with a mix": (
        ["tune", "--model", "sd3", "--workloads", "m.json", "--refresh"],
        "--workloads plans on paper; leave out --refresh",
    ),
}


@pytest.mark.parametrize("case", REFRESHING)
def test_nothing_is_measured_anew_where_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, case: str
) -> None:
    arguments, words = REFRESHING[case]
    assert words in refused(monkeypatch, capsys, tmp_path, arguments)


def test_no_command_shows_the_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["ditplan"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    shown = capsys.readouterr()
    assert shown.err == ""
    for command in ("profile", "tune", "simulate", "run"):
        assert command in shown.out


@pytest.mark.parametrize("out", ["plan.json", "plan.study"])
def test_tune_keeps_off_a_file_where_measurements_go(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, out: str
) -> None:
    (tmp_path / "plan.study").write_text("mine")
    arguments = ["tune", "--model", "sd3", "--out", out]
    assert "plan.study: measurements go to a folder" in refused(
        monkeypatch, capsys, tmp_path, arguments
    )
    assert (tmp_path / "plan.study").read_text() == "mine"


def test_tune_measures_nothing_for_a_mode_that_the_devices_lack(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("ditplan.runtime.workers.device_kind", lambda: "cpu")
    arguments = ["tune", "--model", "sd3-tiny", "--mode", "graph", "--out", "plan.json"]
    error = refused(monkeypatch, capsys, tmp_path, arguments)
    assert "can't run mode graph on CPUs" in error


def test_tune_refuses_the_weights_of_another_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    weights = shipped_weights("sd3-tiny")
    arguments = ["tune", "--model", "sd3", "--weights", str(weights), "--out", "plan.json"]
    error = refused(monkeypatch, capsys, tmp_path, arguments)
    assert f"--weights {weights}" in error
    assert "give sd3's folder" in error


def test_tune_refuses_weights_that_are_no_pipeline(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["tune", "--model", "sd3", "--weights", ".", "--out", "plan.json"]
    error = refused(monkeypatch, capsys, tmp_path, arguments)
    assert "model_index.json: no such file; expected the folder of a diffusers pipeline" in error


@pytest.mark.parametrize("trace", ["no/t.json", "."])
def test_simulate_prices_nothing_for_a_trace_that_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, trace: str
) -> None:
    error = refused(monkeypatch, capsys, tmp_path, [*SIMULATE, "--trace", trace])
    assert error.startswith(f"error: {trace}: ")


def refused(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    arguments: list[str],
) -> str:
    """The one line with which the command refuses; nothing on stdout, no new file."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["ditplan", *arguments])
    before = sorted(folder.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert sorted(folder.rglob("*")) == before
    return said.err
