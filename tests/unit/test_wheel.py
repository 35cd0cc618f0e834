"""A built wheel holds all of the package, and works without the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEEDED: tuple[str, ...] = ("ditplan", "planner", "profiles", "runtime", "cli.py", "pyproject.toml")
NEEDED += ("README.md", "LICENSE")
JUNK = shutil.ignore_patterns("__pycache__", ".*")


def unpacked_wheel(folder: Path) -> Path:
    """Builds a wheel of a copy, in which old builds aren't, and unpacks it in a folder below."""
    checkout = folder / "checkout"
    checkout.mkdir()
    for name in NEEDED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, checkout / name, symlinks=True, ignore=JUNK)
        else:
            shutil.copy(ROOT / name, checkout)
    build = ("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet")
    done = subprocess.run(
        [sys.executable, *build, "--disable-pip-version-check", "--wheel-dir", folder, checkout],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "unpacked")
    shutil.rmtree(checkout)
    return folder / "unpacked"


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an unpacked wheel."""
    return unpacked_wheel(tmp_path_factory.mktemp("wheel"))


def files_below(folder: Path) -> Iterator[str]:
    """All files below a folder, through links, as a repository has them."""
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in names:
            if not name.startswith("."):
                yield (Path(parent) / name).relative_to(folder).as_posix()


def outside(unpacked: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python with the wheel in place of the checkout."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=unpacked.parent,
        env=os.environ | {"PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_wheel_holds_every_module_and_data_file_and_nothing_else(unpacked: Path) -> None:
    assert set(files_below(unpacked / "ditplan")) == set(files_below(ROOT / "ditplan"))
    (facts,) = unpacked.glob("ditplan-*.dist-info")
    assert {path.name for path in unpacked.iterdir()} == {"ditplan", facts.name}


def test_all_that_plans_is_imported_from_the_wheel(unpacked: Path) -> None:
    places = [*unpacked.glob("ditplan/planner/**/*.py"), *unpacked.glob("ditplan/profiles/*.py")]
    names = [".".join(place.relative_to(unpacked).with_suffix("").parts) for place in places]
    modules = [name.removesuffix(".__init__") for name in names]
    assert len(modules) > 40
    script = (
        f"import importlib\nfor name in {modules}:\n"
        "    print(importlib.import_module(name).__file__)\n"
    )
    done = outside(unpacked, "-c", script)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == sorted(map(str, places))


def test_the_command_of_the_wheel_plans_with_the_data_of_the_wheel(unpacked: Path) -> None:
    plan = unpacked.parent / "plan.json"
    arguments = ("tune", "--model", "sd3-tiny", "--cluster", "2xh100-nvlink", "--out", str(plan))
    script = (
        "import sys, ditplan.cli\n"
        "from ditplan.profiles.catalog import shipped_weights\n"
        "print(ditplan.cli.__file__, shipped_weights('sd3-tiny'), flush=True)\n"
        "ditplan.cli.main()\n"
    )
    done = outside(unpacked, "-c", script, *arguments)
    assert done.returncode == 0, done.stderr
    package = unpacked / "ditplan"
    weights = package / "profiles" / "models" / "sd3-tiny"
    assert done.stdout.splitlines()[0] == f"{package / 'cli.py'} {weights}"
    assert plan.exists()
