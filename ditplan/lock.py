"""One process at a time in a folder."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from ditplan.profiles.errors import InputError, Setting


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a folder, which is made where there is none, and goes again
    where nothing was put into it.

    The lock is the kernel's, on a file that names its holder: it ends with the process, however
    that ends.

    Raises:
        InputError: another process holds it, or the folder can't be written to.
    """
    path = folder / "lock"
    try:
        was_there = folder.exists()
        handle = _acquired(path)
    except OSError as error:
        raise InputError(f"{path}: can't be locked: {error.strerror}") from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)
        if not was_there:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _acquired(path: Path) -> int:
    """The open file of the lock, once this process has it."""
    while True:
        path.parent.mkdir(exist_ok=True)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            # who had the folder made and left it empty has just removed it
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(handle, 200).decode(errors="replace").strip() or "another process"
            os.close(handle)
            raise InputError(
                f"{path.parent}: {holder} is tuning in this folder; wait until it ends, or write "
                "another plan: ",
                Setting("out", "FILE"),
            ) from None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                os.ftruncate(handle, 0)
                os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
                return handle
        # its holder removed the file between our opening and locking it
        os.close(handle)
