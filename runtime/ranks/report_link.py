"""The command's end of a conversation with a host that says what it is."""

import contextlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Mapping
from typing import Any, Self

from ditplan.profiles.errors import Sentence
from ditplan.profiles.host import Host
from ditplan.runtime.ranks.environment import search_path
from ditplan.runtime.ranks.host_report import MARK
from ditplan.runtime.ranks.host_view import Clock
from ditplan.runtime.ranks.launchers import Launcher, launch_on
from ditplan.runtime.ranks.remedies import why_not_started

MODULE = "ditplan.runtime.ranks.host_report"
LONGEST_LINE = 1 << 22
LONGEST_ERRORS = 1 << 14
END_S = 1.0


class SilentHostError(Exception):
    """A host doesn't answer; `why` says so in a line with the remedy."""

    def __init__(self, why: Sentence) -> None:
        super().__init__(why)
        self.why = why


class ReportLink:
    """A conversation with one host. Who uses it does so from one thread at a time.

    A host that doesn't answer in time is asked no more: its program is ended.
    """

    def __init__(self, host: Host, environment: Mapping[str, str]) -> None:
        """Starts the host's end, without waiting for it.

        Raises:
            SilentHostError: there is no program here by which to start it.
        """
        launch = launch_on(host, MODULE, environment)
        # where ditplan isn't installed, its path here is that on this machine
        path = os.pathsep.join(search_path())
        self.launcher: Launcher = launch.launcher
        self._host = host
        self._errors = b""
        self._is_late = False
        try:
            self._process = launch.start({**environment, "PYTHONPATH": path}, subprocess.PIPE)
        except OSError as error:
            words = f"{launch.words[0]} can't be started here: {error.strerror}; install it"
            raise SilentHostError(Sentence(words)) from None
        self._reader = threading.Thread(target=self._read_errors, daemon=True)
        self._reader.start()

    def ask(self, limit_s: float, question: str, **details: Any) -> Any:
        """The host's answer to a question.

        Raises:
            SilentHostError: it ended, or doesn't answer within the limit.
        """
        timer = threading.Timer(max(0.0, limit_s), self._give_up)
        timer.daemon = True
        timer.start()
        try:
            return self._answer_to(json.dumps({"ask": question, **details}))
        finally:
            timer.cancel()

    def clock(self, limit_s: float, times: int) -> Clock:
        """The host's clock against ours, by the fastest of some answers.

        Raises:
            SilentHostError: as `ask`.
        """
        deadline, found = time.monotonic() + limit_s, []
        for _ in range(times):
            before, began = time.time(), time.monotonic()
            there = self.ask(deadline - time.monotonic(), "clock")
            within_s = (time.monotonic() - began) / 2
            found.append(Clock(there - before - within_s, within_s))
        return min(found, key=lambda clock: clock.within_s)

    def close(self) -> None:
        """Ends the host's end and what it was started by."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._reader.join(END_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer_to(self, question: str) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(f"{question}\n".encode())
            self._process.stdin.flush()
        except OSError:
            raise self._silent() from None
        mark = MARK.encode()
        while line := self._process.stdout.readline(LONGEST_LINE):
            if line.startswith(mark):
                try:
                    return json.loads(line[len(mark) :])
                except ValueError:
                    break
        raise self._silent()

    def _read_errors(self) -> None:
        """Keeps the end of what is said on standard error, however much that is."""
        assert self._process.stderr is not None
        with self._process.stderr as errors:
            while more := os.read(errors.fileno(), LONGEST_ERRORS):
                self._errors = (self._errors + more)[-LONGEST_ERRORS:]

    def _give_up(self) -> None:
        self._is_late = True
        self._process.kill()

    def _silent(self) -> SilentHostError:
        """Why there is no answer; what was started has ended, or is."""
        try:
            code = self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._is_late = True
            self._process.kill()
            code = self._process.wait()
        self._reader.join(END_S)
        said = self._errors.decode(errors="replace")
        return SilentHostError(why_not_started(self._host, None if self._is_late else code, said))
