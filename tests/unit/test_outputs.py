"""What a command may write, and what it may replace."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ditplan import cli
from ditplan.outputs import require_picture, save_files
from ditplan.profiles.catalog import find_model
from ditplan.profiles.errors import InputError
from ditplan.profiles.family import load_families
from ditplan.profiles.plan import ExecutionPlan, Measurement
from ditplan.runtime.generation import encoded, frame_rate, frame_times_ms

MEASURED = Measurement(latency_s=2.0, runs_s=(2.0,), measured_on="2026-11-29", devices="8 x A100")
TUNE = ["tune", "--model", "sd3", "--cluster", "4xa100-pcie", "--mode", "eager"]


@pytest.fixture(autouse=True)
def _in_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def run_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[Any, str]:
    """A command's exit code and what it says on stderr."""
    monkeypatch.setattr(sys, "argv", ["ditplan", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code, capsys.readouterr().err


def a_measured_plan(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> ExecutionPlan:
    """plan.json, of `TUNE`, as if it had been measured."""
    assert not run_command(monkeypatch, capsys, *TUNE)[0]
    plan = ExecutionPlan.load("plan.json").model_copy(update={"measurement": MEASURED})
    plan.save("plan.json")
    return plan


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], "was measured, and this one is on paper"),
        (["--model", "flux-dev"], "is for another model, sd3"),
        (["--workloads", "mix.json", "--out", "plan.json"], "was measured, and this one is on"),
    ],
)
def test_a_measured_plan_is_replaced_by_force_alone(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    words: str,
) -> None:
    Path("mix.json").write_text('[{"weight": 1}, {"weight": 1, "height": 512}]')
    plan = a_measured_plan(monkeypatch, capsys)
    code, error = run_command(monkeypatch, capsys, *TUNE, *more)
    assert code == 2
    assert error.startswith("error: plan.json: the plan there ")
    assert words in error
    assert "(2 s on 8 x A100)" in error
    assert "with --force" in error
    assert ExecutionPlan.load("plan.json") == plan
    assert not run_command(monkeypatch, capsys, *TUNE, *more, "--force")[0]
    assert json.loads(Path("plan.json").read_text()) != plan.model_dump(mode="json")


def test_a_plan_on_paper_is_replaced_as_before(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not run_command(monkeypatch, capsys, *TUNE)[0]
    assert not run_command(monkeypatch, capsys, *TUNE, "--model", "flux-dev")[0]
    assert ExecutionPlan.load("plan.json").model.name == "flux-dev"


def test_another_workload_on_these_devices_is_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a_measured_plan(monkeypatch, capsys)
    asked = ["tune", "--model", "sd3", "--height", "512"]
    code, error = run_command(monkeypatch, capsys, *asked)
    assert code == 2
    assert "is for another workload, 1024x1024" in error
    assert sorted(path.name for path in Path().iterdir()) == ["plan.json"]


@pytest.mark.parametrize("name", ["v.jpg", "v.jpeg", "v.mp4", "v"])
def test_what_holds_no_video_is_refused(name: str) -> None:
    video = find_model("wan2.1-1.3b").defaults
    with pytest.raises(InputError, match=r"a video of 81 frames.*name a \.webp or \.png"):
        require_picture(Path(name), video)


@pytest.mark.parametrize("name", ["v.webp", "v.png", "V.PNG"])
def test_what_holds_a_video_is_accepted(name: str) -> None:
    require_picture(Path(name), find_model("wan2.1-1.3b").defaults)


@pytest.mark.parametrize(
    ("model", "rate"),
    [
        ("cogvideox-2b", 8),
        ("cogvideox-5b", 8),
        ("cogvideox1.5-5b", 16),
        ("wan2.1-14b", 16),
        ("hunyuanvideo", 24),
        ("sd3", None),
    ],
)
def test_models_of_videos_have_a_frame_rate(model: str, rate: float | None) -> None:
    assert frame_rate(find_model(model)) == rate


def test_every_family_of_videos_says_its_rate() -> None:
    for family in load_families().values():
        for usual in family.usual:
            assert (usual.frames > 1) == (usual.frames_per_s is not None)


@pytest.mark.parametrize("name", ["v.webp", "v.png"])
@pytest.mark.parametrize("rate", [8, 16, 24])
def test_a_video_s_file_carries_the_frame_rate(tmp_path: Path, name: str, rate: int) -> None:
    frames = [Image.new("RGB", (8, 8), (25 * number, 0, 255 - 25 * number)) for number in range(10)]
    save_files(encoded([frames], Path(name).suffix, rate), tmp_path / name)
    shown_ms = []
    with Image.open(tmp_path / name) as saved:
        assert getattr(saved, "n_frames", 1) == 10
        for number in range(10):
            saved.seek(number)
            saved.load()
            shown_ms.append(saved.info["duration"])
    assert sum(shown_ms) == pytest.approx(10_000 / rate, abs=1)
    assert max(shown_ms) - min(shown_ms) <= 1


def test_pictures_of_a_batch_are_numbered_and_keep_what_they_show(tmp_path: Path) -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    pictures = [Image.new("RGB", (8, 8), colour) for colour in colours]
    save_files(encoded(pictures, ".PNG"), tmp_path / "a.PNG")
    for name, colour in zip(("a.PNG", "a-1.PNG", "a-2.PNG"), colours, strict=True):
        with Image.open(tmp_path / name) as saved:
            assert saved.getpixel((4, 4)) == colour


def test_files_for_a_folder_that_is_gone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="doesn't exist; make it first"):
        save_files([b"a picture"], tmp_path / "gone" / "a.png")


def test_frame_times_are_whole_and_do_not_drift() -> None:
    times = frame_times_ms(81, 16)
    assert set(times) == {62, 63}
    assert sum(times) == round(81_000 / 16)
