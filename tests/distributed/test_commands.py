"""The commands as a user runs them on two CPU ranks, and what happens when a rank fails."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest
from PIL import Image

from ditplan.planner.search.journal import recorded_runs
from ditplan.profiles.catalog import shipped_weights
from ditplan.profiles.cluster import ClusterProfile
from ditplan.profiles.plan import ExecutionPlan
from ditplan.runtime.ranks.folders import PREFIX
from tests.unit.json_page import documented

ROOT = Path(__file__).parents[2]
PROMPT = "a red circle left of a blue square"
ENDED_WITHIN_S = 30
FEW = ("--ring", "1", "--pipefusion", "1")
"""There are few such plans."""

FEWER = ("--measure", "2", *FEW)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with hosts.txt and a tuned plan.json."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "hosts.txt").write_text("localhost slots=2\n")
    tuned = finished(start(folder, *tune("plan.json", *FEWER)))
    assert tuned.returncode == 0, tuned.stderr
    plan = ExecutionPlan.load(folder / "plan.json")
    for name, steps in (("longer", 100), ("endless", 1000)):
        # so that what a test does to a rank comes before the run's end
        work = plan.workload.model_copy(update={"steps": steps})
        plan.model_copy(update={"workload": work}).save(folder / f"{name}.json")
    return folder


def tune(out: str, *more: str) -> list[str]:
    """Arguments that tune sd3-tiny."""
    return [
        *("tune", "--model", "sd3-tiny", "--hosts", "hosts.txt", "--json", "--out", out),
        *more,
    ]


def run(plan: str, out: str, *more: str) -> list[str]:
    return [
        *(
            "run",
            "--plan",
            plan,
            "--hosts",
            "hosts.txt",
            "--prompt",
            PROMPT,
            "--out",
            out,
            "--json",
        ),
        *more,
    ]


def start(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Starts the program in `folder`."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "cli.py"), *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # whoever started the tests may have had them ignore it
        preexec_fn=partial(signal.signal, signal.SIGHUP, signal.SIG_DFL),
    )


def finished(
    process: subprocess.Popen[str], timeout_s: float = 600
) -> subprocess.CompletedProcess[str]:
    """Waits for the program; no process of its is left."""
    children = psutil.Process(process.pid).children(recursive=True)
    try:
        out, err = process.communicate(timeout=timeout_s)
    finally:
        process.kill()
    assert psutil.wait_procs(children, timeout=ENDED_WITHIN_S)[1] == []
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def ranks_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The ranks of the program, which an agent's rank starter has started."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for agent in psutil.Process(process.pid).children():
            for starter in agent.children():
                found += starter.children()
    return found


def rank_at_work(process: subprocess.Popen[str]) -> psutil.Process:
    """A rank of the program that has loaded what it works with and computes."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        assert process.poll() is None, "the program ended before a rank worked"
        for rank in ranks_of(process):
            if rank.memory_info().rss > 400e6 and rank.cpu_times().user > 3:
                return rank
        time.sleep(0.1)
    raise AssertionError("no rank began to work")


def test_the_plan_makes_the_picture_of_the_prompt(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = finished(start(folder, *run("plan.json", "picture.png")))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert {"out", "latency_s", "predicted_s", "ranks", "peak_memory_bytes"} <= result.keys()
    plan = ExecutionPlan.load(folder / "plan.json")
    assert plan.prediction is not None
    assert result["predicted_s"] == plan.prediction.latency_s
    assert plan.measurement is not None
    assert result["measured_s"] == plan.measurement.latency_s
    assert result.keys() == documented("run")
    assert result["ranks"] == plan.mesh.size
    monkeypatch.setattr(sys, "path", [str(ROOT / "examples" / "sd3_tiny"), *sys.path])
    import checker

    with Image.open(folder / "picture.png") as picture:
        assert checker.shows(picture, PROMPT)


@pytest.fixture(scope="module")
def tuned_again(folder: Path) -> subprocess.CompletedProcess[str]:
    """The same tune as the folder's, once more."""
    done = finished(start(folder, *tune("plan.json", *FEWER)))
    assert done.returncode == 0, done.stderr
    return done


def test_tuning_again_goes_by_what_was_measured(
    tuned_again: subprocess.CompletedProcess[str],
) -> None:
    assert "measured before" in tuned_again.stderr
    assert ", run 1: " not in tuned_again.stderr
    assert json.loads(tuned_again.stdout)["best"]["measured_s"] is not None


def test_a_refreshed_cluster_is_measured_anew_and_runs_are_kept(folder: Path) -> None:
    kept = folder / "plan.study" / "cluster.json"
    before = kept.read_text()
    # what no measurement gives, of the same devices and software
    kept.write_text(before.replace('"measured_on": "2', '"measured_on": "1'))
    assert kept.read_text() != before
    done = finished(start(folder, *tune("plan.json", *FEWER)))
    assert done.returncode == 0, done.stderr
    assert "cluster: as measured on 1" in done.stderr
    done = finished(start(folder, *tune("plan.json", *FEWER, "--refresh")))
    assert done.returncode == 0, done.stderr
    assert "inspecting 2 cpu devices" in done.stderr
    assert "measured before" in done.stderr
    assert ClusterProfile.load(kept).measured_on.startswith("2")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda rank: rank.kill(), "SIGKILL"),
        (lambda rank: rank.suspend(), "stopped"),
    ],
    ids=["killed", "stopped"],
)
def test_a_rank_that_dies_or_goes_silent_ends_the_run_with_3(
    folder: Path, harm: Callable[[psutil.Process], None], words: str
) -> None:
    process = start(folder, *run("endless.json", "lost.png"))
    harm(rank_at_work(process))
    harmed = time.monotonic()
    done = finished(process)
    assert time.monotonic() - harmed < ENDED_WITHIN_S
    assert done.returncode == 3, done.stderr
    assert "rank" in done.stderr
    assert words in done.stderr
    error = json.loads(done.stdout)
    assert error["exit_code"] == 3
    assert words in error["error"]
    assert not (folder / "lost.png").exists()


def test_a_folder_that_is_gone_when_the_picture_is_made_ends_the_run_with_2(folder: Path) -> None:
    (folder / "gone").mkdir()
    process = start(folder, *run("longer.json", "gone/lost.png"))
    rank_at_work(process)
    (folder / "gone").rmdir()
    done = finished(process)
    assert done.returncode == 2, done.stderr
    assert "gone/lost.png: the folder gone doesn't exist; make it first" in done.stderr
    assert "Traceback" not in done.stderr


def test_weights_that_are_broken_are_refused_with_one_line(folder: Path) -> None:
    weights = shipped_weights("sd3-tiny")
    assert weights is not None
    broken = folder / "broken"
    shutil.copytree(weights, broken)
    (broken / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"not weights")
    done = finished(start(folder, *run("plan.json", "lost.png", "--weights", str(broken))))
    assert done.returncode == 2, done.stderr
    assert "broken: can't be loaded as a StableDiffusion3Pipeline" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "lost.png").exists()


def kill_a_rank_after(process: subprocess.Popen[str], words: str, *, wait: bool = False) -> None:
    """Kills a rank of a tune as soon as that says some words, or then has ranks to kill."""
    assert process.stderr is not None
    assert any(words in line for line in process.stderr), "it ended without saying so"
    deadline = time.monotonic() + 600
    while wait and not ranks_of(process):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    ranks_of(process)[0].kill()


def measured_but_for_plans(folder: Path, out: str) -> list[str]:
    """Arguments of a tune for which all was measured that the folder's has, except plans."""
    study = (folder / out).with_suffix(".study")
    shutil.copytree(folder / "plan.study", study, ignore=shutil.ignore_patterns("journal*"))
    return tune(out, *FEWER)


def test_a_tune_makes_the_run_again_whose_rank_was_killed(folder: Path) -> None:
    process = start(folder, *measured_but_for_plans(folder, "again.json"))
    kill_a_rank_after(process, "run 1")
    done = finished(process)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("died of SIGKILL; it is run once more, on new ranks") == 1
    result = json.loads(done.stdout)
    assert not [one for one in result["alternatives"] if "failed" in one["reason"]]
    runs = recorded_runs(folder / "again.study" / "journal.log")
    assert {run.state for run in runs} <= {"complete", "pruned"}
    assert result["best"]["measured_s"] is not None


def test_a_plan_that_fails_is_noted_and_the_tune_goes_on(folder: Path) -> None:
    process = start(folder, *measured_but_for_plans(folder, "other.json"))
    kill_a_rank_after(process, "run 1")
    kill_a_rank_after(process, "once more", wait=True)
    done = finished(process)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    failed = [one for one in result["alternatives"] if "failed when it was run" in one["reason"]]
    assert len(failed) == 1
    assert "SIGKILL" in failed[0]["reason"]
    assert result["best"]["measured_s"] is not None
    ExecutionPlan.load(folder / "other.json")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_leaves_no_rank_and_no_folder_behind(
    folder: Path, tmp_path: Path, number: signal.Signals
) -> None:
    process = start(folder, *run("endless.json", "lost.png"), TMPDIR=str(tmp_path))
    rank_at_work(process)
    assert list(tmp_path.glob(f"{PREFIX}*"))
    process.send_signal(number)
    done = finished(process)
    assert done.returncode == 128 + number
    assert not (folder / "lost.png").exists()
    assert list(tmp_path.glob(f"{PREFIX}*")) == []


def assert_ended(ranks: list[psutil.Process]) -> None:
    """Waits until processes have ended, whether or not anybody asks how."""
    deadline = time.monotonic() + ENDED_WITHIN_S
    while left := [rank for rank in ranks if is_alive(rank)]:
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.1)


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("when", ["starting", "running", "tuning"])
def test_a_killed_command_leaves_no_rank_and_no_folder_behind(
    folder: Path, tmp_path: Path, when: str
) -> None:
    arguments = tune("killed.json") if when == "tuning" else run("endless.json", "lost.png")
    process = start(folder, *arguments, TMPDIR=str(tmp_path))
    if when == "starting":
        while not list(tmp_path.glob(f"{PREFIX}*/rank-1.log")):
            assert process.poll() is None
            time.sleep(0.01)
    else:
        rank_at_work(process)
    ranks = psutil.Process(process.pid).children(recursive=True)
    assert len(ranks) >= 2
    process.kill()
    process.communicate(timeout=600)
    assert_ended(ranks)
    assert list(tmp_path.glob(f"{PREFIX}*")) == []


def test_a_tune_that_is_told_to_end_leaves_no_rank_and_no_folder_behind(
    folder: Path, tmp_path: Path
) -> None:
    process = start(folder, *tune("ended.json"), TMPDIR=str(tmp_path))
    rank_at_work(process)
    ranks = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    assert finished(process).returncode == 128 + signal.SIGTERM
    assert_ended(ranks)
    assert list(tmp_path.glob(f"{PREFIX}*")) == []
    assert not (folder / "ended.json").exists()


def test_a_rank_that_dies_while_a_cluster_is_measured_ends_the_tune_with_3(folder: Path) -> None:
    process = start(folder, *tune("lost.json"))
    assert process.stderr is not None
    # it has begun to measure
    assert process.stderr.readline()
    psutil.Process(process.pid).children()[0].kill()
    done = finished(process)
    assert done.returncode == 3, done.stderr
    assert "died of SIGKILL" in json.loads(done.stdout)["error"]
    assert not (folder / "lost.json").exists()


def test_a_second_tune_in_the_folder_is_refused_with_one_line(folder: Path) -> None:
    first = start(folder, *tune("shared.json", "--measure", "2", "--steps", "11"))
    assert first.stderr is not None
    # it has begun to measure, so it holds the folder
    assert first.stderr.readline()
    second = finished(start(folder, *tune("shared.json", "--measure", "2")))
    assert second.returncode == 2
    assert second.stderr.count("\n") == 1
    assert f"shared.study: process {first.pid} on " in second.stderr
    first.send_signal(signal.SIGTERM)
    assert finished(first).returncode == 128 + signal.SIGTERM
    assert not (folder / "shared.json").exists()


def test_a_measured_plan_is_not_replaced_on_paper(folder: Path) -> None:
    before = (folder / "plan.json").read_bytes()
    for more in (["--measure", "0"], ["--steps", "7"]):
        done = finished(start(folder, *tune("plan.json", *FEW, *more)))
        assert done.returncode == 2
        assert "error: plan.json: the plan there " in done.stderr
        assert (folder / "plan.json").read_bytes() == before


def test_after_measuring_the_table_shows_corrected_predictions(
    folder: Path, tuned_again: subprocess.CompletedProcess[str]
) -> None:
    asked = [argument for argument in tune("plan.json", *FEWER) if argument != "--json"]
    done = finished(start(folder, *asked))
    assert done.returncode == 0, done.stderr
    assert "(was s): before it was corrected by what was measured" in " ".join(done.stdout.split())
    found = json.loads(tuned_again.stdout)
    corrected = [one for one in found["alternatives"] if one["corrected_s"] is not None]
    assert corrected
    assert all(one["measured_s"] is None for one in corrected)


def test_profiles_are_written_as_asked(folder: Path) -> None:
    done = finished(
        start(folder, "profile", "--hosts", "hosts.txt", "--out", "cluster.json", "--json")
    )
    assert done.returncode == 0, done.stderr
    assert {"out", "hosts", "gpus", "links", "warnings"} <= json.loads(done.stdout).keys()
    done = finished(
        start(
            folder,
            *("profile", "--model", "sd3-tiny", "--height", "16", "--width", "16"),
            *("--out", "model.json", "--json"),
        )
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert {"out", "points", "device"} <= result.keys()
    assert result["points"] > 20
