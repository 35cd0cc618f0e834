"""One agent as the command sees it: the program that was started for it, and what came of it."""

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field

from ditplan.profiles.errors import one_line
from ditplan.runtime.ranks.frames import Wire
from ditplan.runtime.ranks.host_facts import HostFacts
from ditplan.runtime.ranks.launchers import Launch

ERROR_BYTES = 1 << 14
SSH_FAILED = 255
"""What ssh ends with when it fails itself, or when what it ran was killed."""

ENDED_S = 2.0
"""How long a program takes from closing its output to having ended."""


@dataclass(eq=False)
class AgentLink:
    """The wire to an agent. `name` is what messages call its host.

    `facts` are there once it has said hello, `folder` once its ranks have been started; `lost` says
    why nothing more comes from it, `is_silent` that nothing came for too long.
    """

    name: str
    launch: Launch
    process: subprocess.Popen[bytes]
    wire: Wire
    errors: int
    facts: HostFacts | None = None
    folder: str | None = None
    lost: str | None = None
    is_silent: bool = False
    ranks: list[int] = field(default_factory=list)

    @classmethod
    def start(cls, name: str, launch: Launch, environment: Mapping[str, str]) -> "AgentLink":
        """Starts the program that starts the agent.

        Raises:
            OSError: there is no such program, or no process can be started.
        """
        with tempfile.TemporaryFile() as errors:
            process = launch.start(environment, errors)
            assert process.stdin is not None
            assert process.stdout is not None
            incoming, outgoing = os.dup(process.stdout.fileno()), os.dup(process.stdin.fileno())
            process.stdout.close()
            process.stdin.close()
            wire = Wire(incoming, outgoing, after_greeting=True)
            return cls(name, launch, process, wire, os.dup(errors.fileno()))

    def why_it_ended(self, seen: str) -> str:
        """Why nothing more comes: how the program ended, and what it wrote last."""
        program = "its agent" if self.launch.launcher == "direct" else self.launch.launcher
        try:
            code = self.process.wait(ENDED_S)
        except subprocess.TimeoutExpired:
            return f"{program} said nothing that could be understood ({seen})"
        ended = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        if last := self.last_errors():
            return f"{program} {ended}: {last}"
        if self.facts is not None and code == SSH_FAILED and self.launch.launcher == "ssh":
            return "its agent was killed, or the connection to it broke (ssh ended with code 255)"
        return f"{program} {ended}"

    def last_errors(self) -> str:
        """The end of what the program wrote to standard error, and what came in place of frames."""
        size = os.fstat(self.errors).st_size
        written = os.pread(self.errors, ERROR_BYTES, max(0, size - ERROR_BYTES))
        text = written.decode(errors="replace").strip()
        if self.facts is None and not text:
            text = self.wire.preamble.decode(errors="replace").strip()
        return one_line("; ".join(text.splitlines()[-4:]))

    def end(self, patience_s: float) -> None:
        """Waits so long for the program to end by itself, unless it is silent, and ends it then."""
        try:
            self.process.wait(0.0 if self.is_silent else max(0.0, patience_s))
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(ENDED_S)
        os.close(self.errors)
