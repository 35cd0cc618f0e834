"""A rank as its agent sees it: its process, what it logs, and the wire to it."""

import contextlib
import os
import re
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from ditplan.runtime.ranks.frames import Wire

STACK_SIGNAL = signal.SIGUSR1
"""On this signal a rank writes the Python stack of its main thread to its log."""

STACK_S = 2.0
LOG_TAIL_LINES = 40
LOG_TAIL_BYTES = 1 << 16
STOPPED = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)


OOM_KILLS = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)
VMSTAT = Path("/proc/vmstat")


@dataclass
class Seat:
    """One rank of a host. `code` is what its process ended with, below 0 for a signal."""

    number: int
    wire: Wire
    log: Path
    process: int | None = None
    code: int | None = None
    is_stopped: bool = False
    asked: "StackAsked | None" = None

    def log_text(self, start: int = 0) -> str:
        """What the rank wrote to standard output and error, from a byte on."""
        with contextlib.suppress(FileNotFoundError), self.log.open("rb") as log:
            log.seek(start)
            return log.read().decode(errors="replace")
        return ""

    def log_tail(self) -> str:
        """The last lines of the log."""
        size = self.log.stat().st_size if self.log.exists() else 0
        text = self.log_text(max(0, size - LOG_TAIL_BYTES))
        lines = text.rstrip().splitlines()[-LOG_TAIL_LINES:]
        return "\n".join(["The end of its log:", *lines]) if lines else "It wrote nothing."

    def status(self) -> str:
        """What the kernel says of the process."""
        if self.process is not None and self.code is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                return psutil.Process(self.process).status()
        return "gone"

    def has_changed(self) -> bool:
        """Looks whether the process was stopped or runs again since it was last looked at."""
        before, self.is_stopped = self.is_stopped, self.status() in STOPPED
        return self.is_stopped != before

    def ask_for_stack(self) -> None:
        """Has the rank write its stack."""
        size = self.log.stat().st_size if self.log.exists() else 0
        self.asked = StackAsked(size)
        if self.process is not None and self.code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process, STACK_SIGNAL)

    def stack(self) -> str | None:
        """The stack that was asked for, or why there is none; None while it may still come."""
        assert self.asked is not None
        text = self.log_text(self.asked.log_from).rstrip()
        if text:
            return text
        if time.monotonic() < self.asked.until:
            return None
        status = self.status()
        where = ", in the kernel or a driver" if status == psutil.STATUS_DISK_SLEEP else ""
        return f"It gave no stack; its process's state is {status}{where}. {self.log_tail()}"

    def end(self) -> None:
        """Ends the rank and what it started, at once; works on stopped processes too."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process, signal.SIGKILL)


@dataclass(frozen=True)
class StackAsked:
    """Where in the log a stack will stand, and until when it is waited for."""

    log_from: int
    until: float = field(default_factory=lambda: time.monotonic() + STACK_S)


def out_of_memory_kills(counters: Path = VMSTAT) -> int:
    """How many processes the kernel of this host has ended for lack of memory since it booted; 0
    where it doesn't say.
    """
    with contextlib.suppress(OSError):
        found = OOM_KILLS.search(counters.read_text())
        return int(found[1]) if found else 0
    return 0
