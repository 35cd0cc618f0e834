"""Contestants as groups of processes that are told when to run.

A contestant's command starts one process for each rank, with the environment that torchrun would
give it and `--replies FD`. Each rank writes JSON lines to FD: first `{"software": {...}}`, then for
each variant, in order, `{}` once it is warm or `{"failed": reason}`. After that it answers each
line on its standard input, a variant's number, with a run: `seconds` (None on ranks that had no
part in it), `clock_mhz`, `memory_bytes`, `recompiled`, `rms`; or with `{"failed": reason}`.
"""

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

GRACE_S = 20.0
"""How long the other ranks may take to answer after one of them has failed."""

LEAVE_S = 10.0
"""How long a process that closed its pipe may take to end."""

SHOW_STACKS = signal.SIGUSR1
"""Has a rank of a contestant write the stacks of its threads into its log."""

STACKS_S = 0.5

EXCEPTION = re.compile(r"[\w.]*(Error|Exception|Interrupt|Exit)\b")


class ContestantError(Exception):
    """A contestant died, hung or can't go on; the message says which of them in a line."""


@dataclass(frozen=True)
class Variant:
    """One way in which a contestant runs the model."""

    mesh: str
    mode: str
    attention: str

    @property
    def gpus(self) -> int:
        """How many GPUs it computes on."""
        return 1 if self.mesh == "one" else 2


@dataclass(frozen=True)
class Contestant:
    """What is started as one group of processes, and the variants that it can run."""

    name: str
    command: tuple[str, ...]
    ranks: int
    variants: tuple[Variant, ...]
    memory_bytes: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)


class Started:
    """A contestant's processes; a context manager that ends them."""

    def __init__(self, contestant: Contestant, logs: Path) -> None:
        self.contestant = contestant
        self.software: dict[str, str] = {}
        port = _free_port()
        self._logs = [logs / f"{contestant.name}-{port}-rank{n}.log" for n in range(self._ranks)]
        self._buffers = [b""] * self._ranks
        self._replies: list[int] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(self._ranks):
                self._start(rank, port)
        except OSError:
            self.end()
            raise

    @property
    def _ranks(self) -> int:
        return self.contestant.ranks

    def _start(self, rank: int, port: int) -> None:
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": self._ranks, "MASTER_PORT": port}
        environment = os.environ | dict(self.contestant.environment)
        environment |= {name: str(number) for name, number in numbers.items()}
        environment["MASTER_ADDR"] = "127.0.0.1"
        read_end, write_end = os.pipe()
        self._replies.append(read_end)
        try:
            with self._logs[rank].open("wb") as log:
                process = subprocess.Popen(
                    [*self.contestant.command, "--replies", str(write_end)],
                    bufsize=0,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=(write_end,),
                    env=environment,
                    start_new_session=True,
                )
        finally:
            os.close(write_end)
        self._processes.append(process)

    def wait_until_warm(self, deadline: float) -> dict[Variant, str]:
        """The variants that can't run, with the reasons, once all were tried.

        Raises:
            ContestantError: it died, or wasn't ready by the deadline.
        """
        self.software = self._answers(deadline, "loading")[0]["software"]
        failed = {}
        for variant in self.contestant.variants:
            answers = self._answers(deadline, f"warming up {variant.mesh}, {variant.mode}")
            if reasons := [answer["failed"] for answer in answers if "failed" in answer]:
                failed[variant] = reasons[0]
        return failed

    def run(self, variant: Variant, timeout_s: float) -> dict[str, Any]:
        """One timed run: what its ranks report, taken together.

        Raises:
            ContestantError: it died or didn't answer in time.
        """
        line = f"{self.contestant.variants.index(variant)}\n".encode()
        for rank, process in enumerate(self._processes):
            try:
                _stdin_of(process).write(line)
            except BrokenPipeError as error:
                raise ContestantError(self._why_it_ended(rank)) from error
        deadline = time.monotonic() + timeout_s
        answers = self._answers(deadline, f"running {variant.mesh}, {variant.mode}")
        for answer in answers:
            if "failed" in answer:
                return answer
        return _together(answers)

    def _answers(self, deadline: float, doing: str) -> list[dict[str, Any]]:
        """The next line of every rank."""
        begin = time.monotonic()
        found: dict[int, dict[str, Any]] = {}
        while True:
            for rank in range(self._ranks):
                line, newline, rest = self._buffers[rank].partition(b"\n")
                if rank not in found and newline:
                    found[rank], self._buffers[rank] = json.loads(line), rest
                    if "failed" in found[rank]:
                        deadline = min(deadline, time.monotonic() + GRACE_S)
            if len(found) == self._ranks:
                return [found[rank] for rank in range(self._ranks)]
            missing = {
                self._replies[rank]: rank for rank in range(self._ranks) if rank not in found
            }
            left_s = deadline - time.monotonic()
            readable, _, _ = select.select(list(missing), [], [], max(left_s, 0))
            if not readable:
                waited = f"hung: no answer in {time.monotonic() - begin:.0f} s while {doing}"
                self._show_stacks()
                said = "; ".join(a["failed"] for a in found.values() if "failed" in a)
                raise ContestantError(said or waited)
            for pipe in readable:
                chunk = os.read(pipe, 1 << 16)
                if not chunk:
                    raise ContestantError(self._why_it_ended(missing[pipe]))
                self._buffers[missing[pipe]] += chunk

    def _show_stacks(self) -> None:
        """Has the ranks write into their logs where they are."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, SHOW_STACKS)
        time.sleep(STACKS_S)

    def _why_it_ended(self, rank: int) -> str:
        try:
            code = self._processes[rank].wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            return f"rank {rank} closed its pipe"
        ended = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        lines = self._logs[rank].read_text(errors="replace").strip().splitlines()
        # torch.distributed puts the rank before each line of a traceback, and warns after it
        lines = [line.removeprefix(f"[rank{rank}]: ").strip() for line in lines]
        errors = [line for line in lines if EXCEPTION.match(line)]
        said = (errors or lines or [""])[-1]
        return f"rank {rank} {ended}: {said}" if said else f"rank {rank} {ended}"

    def end(self) -> None:
        """Kills the processes and what they started."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for process in self._processes:
            process.wait()
            _stdin_of(process).close()
        for pipe in self._replies:
            os.close(pipe)
        self._processes, self._replies = [], []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()


def _together(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One run from what each rank says of it."""
    took_part = [answer for answer in answers if answer["seconds"] is not None]
    clocks = [a["clock_mhz"] for a in took_part if a["clock_mhz"] is not None]
    rms = [a["rms"] for a in took_part if a["rms"] is not None]
    return {
        "seconds": max(answer["seconds"] for answer in took_part),
        "clock_mhz": min(clocks, default=None),
        "memory_bytes": max(answer["memory_bytes"] for answer in took_part),
        "recompiled": max(answer["recompiled"] for answer in took_part),
        "rms": rms[0] if rms else None,
    }


def _stdin_of(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdin is not None
    return process.stdin


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
