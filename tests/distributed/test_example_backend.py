"""The backend of examples/backend, installed as any other package."""

import json
import os
import shutil
import subprocess
import sys
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


def python(site: Path, *arguments: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """A run of Python that has a folder of packages beside ditplan."""
    path = os.pathsep.join([str(site), str(ROOT)])
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        cwd=site.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
    )


def command(installed: Path, *arguments: str) -> str:
    """What a command of ditplan prints."""
    done = python(installed / "site", "-m", "ditplan", *arguments, timeout_s=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def suite(site: Path, tests: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """A run of the tests that the package has."""
    usual = ["-q", "-p", "no:cacheprovider", "--rootdir", str(tests), str(tests)]
    return python(site, "-m", "pytest", *usual, *options, timeout_s=600)


def test_it_is_listed_with_where_it_comes_from(installed: Path) -> None:
    found = json.loads(command(installed, "list", "backends", "--json"))
    (own,) = (one for one in found["backends"] if one["name"] == NAME)
    assert own["origin"] == "split-guidance 0.1.0"
    assert (own["axes"], own["runs"]) == (["cfg"], "in ranks")
    assert found["broken"] == []


def test_its_best_plan_splits_guidance_and_is_exported_in_its_words(installed: Path) -> None:
    paper = ["tune", "--model", "sd3", "--cluster", "8xh100-nvlink", "--backend", NAME, "--json"]
    best = json.loads(command(installed, *paper))["best"]
    assert (best["cfg"], best["gpus"], best["mode"], best["backend"]) == (2, 2, "eager", NAME)
    said = command(installed, "export", "--plan", "plan.json", "--to", NAME)
    assert "torchrun --nproc-per-node=2" in said


def test_its_plans_are_tuned_and_run_on_ranks(installed: Path) -> None:
    size = ["--height", "64", "--width", "64", "--steps", "2"]
    asked = ["--backend", NAME, "--cfg", "2", "--measure", "1", "--force", "--json"]
    hosts = ["--hosts", "localhost:2"]
    best = json.loads(command(installed, "tune", "--model", "sd3-tiny", *hosts, *size, *asked))
    assert best["best"]["backend"] == NAME
    plan = json.loads((installed / "plan.json").read_text())
    assert plan["measurement"] is not None
    picture = ["--prompt", "a red circle", "--out", "picture.png"]
    command(installed, "run", "--plan", "plan.json", *hosts, *picture)
    assert (installed / "picture.png").stat().st_size > 0


ONE_FAMILY = "not auraflow and not cogvideox and not pixart"
FAULTS = {
    "the order of ranks is forgotten": (
        "runtime.py",
        "if first_comes_first else halves[::-1]",
        "",
        "sit_where_the_plan_says",
    ),
    "the model stays changed": (
        "runtime.py",
        'vars(model).pop("forward", None)',
        'vars(model).get("forward")',
        "equal_one_device",
    ),
    "nothing is split": (
        "runtime.py",
        "if plan.mesh.size == 1:",
        "if plan.mesh.size > 0:",
        "equal_one_device",
    ),
    "anything is accepted": (
        "backend.py",
        "if why := CAPABILITIES.why_unsupported(configuration, model):",
        "if why := None:",
        "not_claimed_is_refused",
    ),
    "torch is imported": (
        "backend.py",
        "import shlex",
        "import shlex\nimport torch",
        "found_without_torch",
    ),
}


@pytest.mark.thorough
@pytest.mark.parametrize("fault", FAULTS)
def test_one_that_breaks_a_promise_fails(installed: Path, tmp_path: Path, fault: str) -> None:
    name, right, wrong, test = FAULTS[fault]
    site = tmp_path / "site"
    shutil.copytree(installed / "site", site)
    source = site / "split_guidance" / name
    assert right in source.read_text()
    source.write_text(source.read_text().replace(right, wrong))
    done = suite(site, installed / "sources/tests", "-k", f"{test} and {ONE_FAMILY}")
    assert done.returncode == 1, done.stdout + done.stderr
    assert test in done.stdout.partition("FAILED ")[2]


def test_it_passes_what_is_asked_of_all_backends(installed: Path) -> None:
    done = suite(installed / "site", installed / "sources/tests")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
