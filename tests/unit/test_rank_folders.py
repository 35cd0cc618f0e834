"""Folders of ranks: those of dead processes go, those that hold logs of failures stay."""

import os
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from ditplan.runtime.ranks.folders import (
    OWNER,
    PREFIX,
    keep_folder,
    make_folder,
    remove_if_orphaned,
    sweep,
)


@pytest.fixture(autouse=True)
def _own_temporary_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def left_behind(folder: Path) -> Path:
    """A folder whose process was killed."""
    script = (
        "import os, sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
        "from ditplan.runtime.ranks.folders import make_folder\n"
        "print(make_folder(), flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    return Path(done.stdout.strip())


def test_the_next_start_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    lost = left_behind(tmp_path)
    (lost / "rank-0.log").write_text("half")
    mine = make_folder()
    assert not lost.exists()
    make_folder()
    assert (mine / OWNER).exists()


def test_a_rank_removes_the_folder_of_a_killed_process_and_no_other(tmp_path: Path) -> None:
    mine = make_folder()
    lost = left_behind(tmp_path)
    remove_if_orphaned(lost)
    remove_if_orphaned(mine)
    assert not lost.exists()
    assert mine.exists()


def test_a_process_that_nobody_has_asked_after_is_gone(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.PIPE)
    began = psutil.Process(ended.pid).create_time()
    while psutil.Process(ended.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    folder = tmp_path / f"{PREFIX}x"
    folder.mkdir()
    (folder / OWNER).write_text(f"{ended.pid} {began}")
    sweep(tmp_path)
    ended.communicate()
    assert not folder.exists()


def test_only_their_user_may_look_into_folders() -> None:
    assert stat.S_IMODE(make_folder().stat().st_mode) == 0o700


def test_logs_of_a_failure_are_kept(tmp_path: Path) -> None:
    folder = make_folder()
    (folder / "rank-0.log").write_text("why")
    keep_folder(folder)
    sweep(tmp_path)
    assert (folder / "rank-0.log").read_text() == "why"


@pytest.mark.parametrize("owner", [None, "", "words", "1", "1 2 3"])
def test_folders_without_a_known_owner_are_left_alone(tmp_path: Path, owner: str | None) -> None:
    folder = tmp_path / f"{PREFIX}x"
    folder.mkdir()
    if owner is not None:
        (folder / OWNER).write_text(owner)
    sweep(tmp_path)
    assert folder.exists()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    other = tmp_path / "mine"
    other.mkdir()
    (other / OWNER).write_text("999999999 1.0")
    (tmp_path / f"{PREFIX}link").symlink_to(other)
    sweep(tmp_path)
    assert other.exists()


def test_the_process_number_of_another_process_is_no_owner(tmp_path: Path) -> None:
    folder = tmp_path / f"{PREFIX}x"
    folder.mkdir()
    (folder / OWNER).write_text(f"{os.getpid()} 1.0")
    sweep(tmp_path)
    assert not folder.exists()
