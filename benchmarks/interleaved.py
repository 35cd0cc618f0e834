"""Contestants that stay alive together and are timed one at a time, in turns."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.processes import Contestant, ContestantError, Started, Variant


@dataclass(frozen=True)
class Run:
    """One timed run; the clock is the lowest of all GPUs, the memory the highest."""

    group: int
    round: int
    seconds: float
    clock_mhz: int | None
    memory_bytes: int
    recompiled: int
    rms: float | None


@dataclass
class Row:
    """The runs of one variant of one contestant, and why there are no more."""

    contestant: str
    variant: Variant
    runs: list[Run] = field(default_factory=list)
    failed: str | None = None


@dataclass(frozen=True)
class Limits:
    """How long things may take, and the moment (of `time.monotonic`) after which nothing starts."""

    start_s: float
    run_s: float
    stop_at: float

    @property
    def over(self) -> bool:
        """Whether the time for all is used up."""
        return time.monotonic() >= self.stop_at


class Match:
    """Contestants against the reference, which is alive and timed in every group of them."""

    def __init__(
        self,
        reference: Contestant | None,
        logs: Path,
        limits: Limits,
        report: Callable[[str], None],
        saved: Callable[[], None],
    ) -> None:
        """`report` is told of progress, `saved` is called whenever there are new results."""
        self.rows: list[Row] = []
        self.software: dict[str, str] = {}
        self._reference = reference
        self._logs, self._limits = logs, limits
        self._report, self._saved = report, saved
        self._alive: list[Started] = []

    def play(self, groups: Sequence[Sequence[Contestant]], rounds: int) -> None:
        """Times every group's contestants in `rounds` rounds, those of one group interleaved."""
        try:
            for number, group in enumerate(groups):
                newcomers = [*([self._reference] if self._reference and not number else []), *group]
                self.rows += [
                    Row(contestant.name, variant)
                    for contestant in newcomers
                    for variant in contestant.variants
                ]
                if self._limits.over:
                    self._fail(newcomers, "not started: the time was used up")
                    continue
                self._start(newcomers)
                self._play_rounds(number, rounds)
                self._end([started for started in self._alive if started.contestant in group])
        finally:
            self._end(list(self._alive))
            self._saved()

    def _start(self, newcomers: Iterable[Contestant]) -> None:
        """Starts contestants, which load and warm up at the same time, and waits for them."""
        begin = time.monotonic()
        deadline = min(begin + self._limits.start_s, self._limits.stop_at)
        fresh = []
        for contestant in newcomers:
            fresh.append(Started(contestant, self._logs))
            self._alive.append(fresh[-1])
        for started in fresh:
            name = started.contestant.name
            try:
                failed = started.wait_until_warm(deadline)
            except ContestantError as error:
                self._give_up(started, str(error))
                continue
            self.software |= started.software
            for variant, reason in failed.items():
                self._row(started, variant).failed = reason
                self._report(f"{name} {variant.mesh}, {variant.mode}: {reason}")
            if len(failed) == len(started.contestant.variants):
                self._end([started])
                continue
            self._report(f"{name} is warm after {time.monotonic() - begin:.0f} s")

    def _play_rounds(self, group: int, rounds: int) -> None:
        for number in range(rounds):
            entries = [(one, variant) for one in self._alive for variant in one.contestant.variants]
            for started, variant in entries if number % 2 == 0 else reversed(entries):
                if self._limits.over:
                    self._report(f"the time is used up in round {number + 1} of {rounds}")
                    return
                if started in self._alive and self._row(started, variant).failed is None:
                    self._run(started, variant, group, number)
            self._saved()

    def _run(self, started: Started, variant: Variant, group: int, number: int) -> None:
        row = self._row(started, variant)
        label = f"round {number + 1}: {row.contestant} {variant.mesh}, {variant.mode}"
        try:
            answer = started.run(variant, self._limits.run_s)
        except ContestantError as error:
            row.failed = str(error)
            self._give_up(started, f"ended after {variant.mesh}, {variant.mode}: {error}")
            return
        if "failed" in answer:
            row.failed = answer["failed"]
            self._report(f"{label}: {row.failed}")
            return
        row.runs.append(Run(group=group, round=number, **answer))
        self._report(f"{label}: {row.runs[-1].seconds:.4f} s")

    def _give_up(self, started: Started, reason: str) -> None:
        self._report(f"{started.contestant.name}: {reason}")
        self._fail([started.contestant], reason)
        self._end([started])

    def _fail(self, contestants: Iterable[Contestant], reason: str) -> None:
        names = {contestant.name for contestant in contestants}
        for row in self.rows:
            if row.contestant in names and row.failed is None:
                row.failed = reason

    def _row(self, started: Started, variant: Variant) -> Row:
        return next(
            row
            for row in self.rows
            if (row.contestant, row.variant) == (started.contestant.name, variant)
        )

    def _end(self, ended: Iterable[Started]) -> None:
        for started in ended:
            started.end()
            self._alive.remove(started)


def pack(
    contestants: Iterable[Contestant], reference_bytes: int, room_bytes: int
) -> list[list[Contestant]]:
    """Groups that fit in a GPU's memory together with the reference, in the given order.

    At least one group, which may be empty; a contestant that fits nowhere has one of its own.
    """
    groups: list[list[Contestant]] = [[]]
    used = reference_bytes
    for contestant in contestants:
        if groups[-1] and used + contestant.memory_bytes > room_bytes:
            groups.append([])
            used = reference_bytes
        groups[-1].append(contestant)
        used += contestant.memory_bytes
    return groups
