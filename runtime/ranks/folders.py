"""The folders in which ranks log, in the folder for temporary files."""

import os
import shutil
import tempfile
from pathlib import Path

import psutil

PREFIX = "ditplan-ranks-"
OWNER = "owner"
"""A file in each folder: the process that started the ranks, and when that process began."""


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
        try:
            if folder.lstat().st_uid != os.getuid() or folder.is_symlink():
                continue
            pid, began = (folder / OWNER).read_text().split()
            is_alive = is_running(int(pid), float(began))
        except (OSError, ValueError):
            # kept for its logs, or about to be given an owner
            continue
        if not is_alive:
            shutil.rmtree(folder, ignore_errors=True)


def is_running(pid: int, began: float) -> bool:
    """Whether the process of that number is the one that began then."""
    try:
        return psutil.Process(pid).create_time() == began
    except psutil.NoSuchProcess:
        return False
