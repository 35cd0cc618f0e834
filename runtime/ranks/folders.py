"""The folders in which ranks meet and log, in the folder for temporary files; nobody else may look
into them.
"""

import os
import shutil
import tempfile
import time
from pathlib import Path

import psutil

PREFIX = "ditplan-ranks-"
OWNER = "owner"
"""A file in each folder: the process that started the ranks, and when that process began."""

ENDING_S = 1.0
"""How long a process that is killed takes from closing its connections to being gone."""


def make_folder() -> Path:
    """A new folder; those whose process was killed before it could remove them go."""
    sweep(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    mine = psutil.Process()
    (folder / OWNER).write_text(f"{mine.pid} {mine.create_time()}")
    return folder


def keep_folder(folder: Path) -> None:
    """Leaves a folder to whoever wants to read why ranks failed."""
    (folder / OWNER).unlink(missing_ok=True)


def sweep(where: Path) -> None:
    """Removes this user's folders whose process is gone."""
    for folder in where.glob(f"{PREFIX}*"):
        if _is_orphaned(folder):
            shutil.rmtree(folder, ignore_errors=True)


def remove_if_orphaned(folder: Path) -> None:
    """Removes a folder whose process is gone, or is just ending."""
    deadline = time.monotonic() + ENDING_S
    while not (is_orphaned := _is_orphaned(folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    if is_orphaned:
        shutil.rmtree(folder, ignore_errors=True)


def is_running(pid: int, began: float) -> bool:
    """Whether the process of that number is the one that began then, and hasn't ended."""
    try:
        process = psutil.Process(pid)
        ended = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        return process.create_time() == began and process.status() not in ended
    except psutil.Error:
        return False


def _is_orphaned(folder: Path) -> bool:
    """Whether a folder is this user's and its process is gone."""
    try:
        if folder.lstat().st_uid != os.getuid() or folder.is_symlink():
            return False
        pid, began = (folder / OWNER).read_text().split()
        return not is_running(int(pid), float(began))
    except (OSError, ValueError):
        # kept for its logs, or about to be given an owner
        return False
