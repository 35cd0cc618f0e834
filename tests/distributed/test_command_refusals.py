"""What only ranks can find wrong: refused with one line, exit 2, and nothing is left behind."""

import sys
from pathlib import Path

import pytest

from ditplan import cli
from ditplan.profiles.catalog import find_model
from ditplan.profiles.mesh import Mesh
from tests.distributed.small_models import plan_for, workload

TUNE = ["tune", "--model", "sd3-tiny", "--hosts", "hosts.txt", "--out", "plan.json"]
RUN = ["run", "--plan", "plan.json", "--hosts", "hosts.txt", "--prompt", "x", "--out", "x.png"]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["--dtype", "bfloat16"], "--dtype bfloat16: on CPUs the dtype is float32"),
        (["--ulysses", "4"], "ulysses4, need 4 GPUs and there are 2"),
    ],
)
def test_tune_that_these_ranks_cannot_do_leaves_no_study(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    asked: list[str],
    words: str,
) -> None:
    assert words in refused(monkeypatch, capsys, tmp_path, [*TUNE, *asked])
    assert [path.name for path in tmp_path.iterdir()] == ["hosts.txt"]


def test_run_refuses_a_plan_made_for_other_devices(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plan = plan_for(find_model("sd3-tiny"), Mesh(cfg=2), workload(height=32, width=40))
    elsewhere = plan.fingerprint.model_copy(update={"devices": ("H100", "H100")})
    plan.model_copy(update={"fingerprint": elsewhere}).save(tmp_path / "plan.json")
    error = refused(monkeypatch, capsys, tmp_path, RUN)
    assert "made for H100 on rank 0" in error
    assert "tune for this cluster" in error
    assert not (tmp_path / "x.png").exists()


def refused(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    arguments: list[str],
) -> str:
    """The one line with which the command refuses, after progress and with nothing on stdout."""
    (folder / "hosts.txt").write_text("localhost slots=2\n")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["ditplan", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert said.out == ""
    assert "Traceback" not in said.err
    assert said.err.count("error: ") == 1
    last = said.err.splitlines()[-1]
    assert last.startswith("error: ")
    return last
