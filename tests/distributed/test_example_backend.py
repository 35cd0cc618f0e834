"""The backend of examples/backend, installed as any other package."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAME = "split-guidance"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as pip installs it, and its sources beside."""
    folder = tmp_path_factory.mktemp("backend")
    # building leaves files beside the sources
    shutil.copytree(ROOT / "examples/backend", folder / "sources")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    options = ["--no-deps", "--no-build-isolation", "--no-index"]
    where = ["--target", str(folder / "site"), str(folder / "sources")]
    subprocess.run([*pip, *options, *where], check=True, timeout=300)
    return folder


def run(installed: Path, arguments: Sequence[str], timeout_s: float = 120) -> str:
    """What Python prints that has the package beside ditplan."""
    path = os.pathsep.join([str(installed / "site"), str(ROOT)])
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        cwd=installed,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_listed_with_where_it_comes_from(installed: Path) -> None:
    found = json.loads(run(installed, ["-m", "ditplan", "list", "backends", "--json"]))
    (own,) = (one for one in found["backends"] if one["name"] == NAME)
    assert own["origin"] == "split-guidance 0.1.0"
    assert (own["axes"], own["runs"]) == (["cfg"], "in ranks")
    assert found["broken"] == []


def test_its_best_plan_splits_guidance_and_is_exported_in_its_words(installed: Path) -> None:
    paper = ["tune", "--model", "sd3", "--cluster", "8xh100-nvlink", "--backend", NAME, "--json"]
    best = json.loads(run(installed, ["-m", "ditplan", *paper]))["best"]
    assert (best["cfg"], best["gpus"], best["mode"], best["backend"]) == (2, 2, "eager", NAME)
    said = run(installed, ["-m", "ditplan", "export", "--plan", "plan.json", "--to", NAME])
    assert "torchrun --nproc-per-node=2" in said


def test_its_plans_are_tuned_and_run_on_ranks(installed: Path) -> None:
    program = ["-m", "ditplan"]
    size = ["--height", "64", "--width", "64", "--steps", "2"]
    tune = ["tune", "--model", "sd3-tiny", "--hosts", "localhost:2", *size, "--backend", NAME]
    best = json.loads(
        run(installed, [*program, *tune, "--cfg", "2", "--measure", "1", "--json"], 300)
    )["best"]
    assert best["backend"] == NAME
    plan = json.loads((installed / "plan.json").read_text())
    assert plan["measurement"] is not None
    picture = ["run", "--plan", "plan.json", "--hosts", "localhost:2", "--prompt", "a red circle"]
    run(installed, [*program, *picture, "--out", "picture.png"], 300)
    assert (installed / "picture.png").stat().st_size > 0


def test_it_passes_what_is_asked_of_all_backends(installed: Path) -> None:
    options = ["-q", "-p", "no:cacheprovider", "--rootdir", str(installed)]
    tests = str(installed / "sources/tests")
    said = run(installed, ["-m", "pytest", *options, tests], timeout_s=600)
    assert " passed" in said
    assert "failed" not in said
