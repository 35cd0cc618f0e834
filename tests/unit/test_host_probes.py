"""What a host asks itself: each probe against another way to know it."""

import shutil
import threading
from pathlib import Path

import pytest

from ditplan.runtime.ranks.host_probes import disk, product_rate, sources_digest, versions, within


def test_probes_that_hang_are_left_out_and_hold_up_no_other() -> None:
    never = threading.Event()
    found = within(0.3, {"hangs": never.wait, "answers": lambda: 7, "also": lambda: None})
    never.set()
    assert found == {"answers": 7, "also": None}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    (tmp_path / "a/__pycache__").mkdir(parents=True)
    (tmp_path / "a/x.py").write_text("1")
    (tmp_path / "a/y.toml").write_text("2")
    (tmp_path / "a/__pycache__/x.pyc").write_text("any")
    return tmp_path / "a"


def test_the_digest_of_sources_is_the_same_wherever_they_lie(package: Path, tmp_path: Path) -> None:
    before = sources_digest(package)
    shutil.copytree(package / "__pycache__", package / "more")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/x.py").write_text("1")
    (tmp_path / "linked/y.toml").symlink_to(package / "y.toml")
    assert sources_digest(package) == sources_digest(tmp_path / "linked") == before


@pytest.mark.parametrize(
    ("file", "text"), [("x.py", "2"), ("z.py", ""), ("data.json", "{}"), ("y.toml", "")]
)
def test_the_digest_changes_with_any_source(package: Path, file: str, text: str) -> None:
    before = sources_digest(package)
    (package / file).write_text(text)
    assert sources_digest(package) != before


def test_versions_are_those_that_are_imported() -> None:
    import diffusers
    import torch

    found = versions()
    assert (found["torch"], found["diffusers"]) == (torch.__version__, diffusers.__version__)


def test_the_folder_for_logs_is_asked_and_left_as_it_was(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = disk()
    assert (found["folder"], found["fault"]) == (str(tmp_path), "")
    assert found["free_bytes"] == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.2)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_takes_nothing_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/dev/full")
    assert disk() == {"folder": "/dev/full", "free_bytes": None, "fault": "Not a directory"}


def test_a_processor_multiplies() -> None:
    # any that Python runs on, and none of today
    assert 1e6 < product_rate() < 1e10
