"""Damaged inputs to everything that reads what a user gives: files, folders, command lines.

    python -m benchmarks.fuzz --cases 10000 --commands 300

Each ends as a valid object or as one line of at most 300 characters and exit code 2, within 5 s of
the processor's time and 1 GiB; what waits for something is ended and counts as a fault. Cases
follow from the seed and their number alone: `--only NUMBER` repeats one.
"""

import argparse
import collections
import json
import os
import random
import select
import subprocess
import sys
import time
import unicodedata
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from benchmarks.machine import described

SECONDS, MEGABYTES, CHARACTERS = 5.0, 1024, 300
START_S = 300.0
"""How long the process of the cases may take to begin."""


@dataclass(frozen=True)
class Outcome:
    """What came of a case: `end` is loaded, refused or fault, and `what` says which fault."""

    number: int
    kind: str
    end: str
    what: str
    seconds: float = 0.0
    megabytes: int = 0

    @property
    def is_within_limits(self) -> bool:
        """Whether it took no more of the processor's time, and of memory, than it may."""
        return self.seconds <= SECONDS and self.megabytes <= MEGABYTES


def fault_of(message: str) -> str:
    """What is wrong with a message to the user; empty if nothing is."""
    if not message.strip():
        return "says nothing"
    if len(message) > CHARACTERS:
        return f"{len(message)} characters: {message[:80]}"
    bad = [c for c in message if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
    return f"holds {bad[0]!r}: {message[:80]}" if bad else ""


def outcomes(cases: int, commands: int, seed: int, hang_s: float) -> Iterator[Outcome]:
    """Runs all cases in a process of its own, which is started anew when a case hangs or kills
    it.
    """
    number, end = 0, cases + commands
    while number < end:
        arguments = ["--cases", str(cases), "--commands", str(commands), "--seed", str(seed)]
        worker = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.fuzz", *arguments, "--work-from", str(number)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
        )
        assert worker.stdout is not None
        try:
            for line in _lines(worker.stdout, hang_s):
                if not line:
                    continue
                found = Outcome(**json.loads(line))
                number = found.number + 1
                yield found
        finally:
            worker.kill()
            worker.wait()
            worker.stdout.close()
        if number < end:
            ended = "hangs" if worker.returncode == -9 else f"ends the process: {worker.returncode}"
            yield Outcome(number, "?", "fault", ended)
            number += 1


def _lines(pipe: IO[bytes], hang_s: float) -> Iterator[bytes]:
    """The lines of a pipe until it is closed or says nothing for so long."""
    rest, wait_s = b"", START_S
    while select.select([pipe], [], [], wait_s)[0]:
        read, wait_s = os.read(pipe.fileno(), 65536), hang_s
        if not read:
            return
        *lines, rest = (rest + read).split(b"\n")
        yield from lines


def work(cases: int, commands: int, seed: int, first: int) -> None:
    """Runs the cases from `first` on, and writes their outcomes to stdout as JSON lines."""
    from benchmarks.fuzz_cases import run_case, workplace

    # what the cases print goes nowhere
    out = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    with workplace(seed) as place:
        out.write("\n")
        out.flush()
        for number in range(first, cases + commands):
            before_mb = _reset_peak()
            rng = random.Random(f"{seed} {number}")
            started = time.process_time()
            kind, end, what = run_case(place, rng, number, is_command=number >= cases)
            took = time.process_time() - started
            used = max(0, _status_mb("VmHWM") - before_mb)
            found = Outcome(number, kind, end, what, round(took, 3), used)
            out.write(json.dumps(asdict(found)) + "\n")
            out.flush()


def _reset_peak() -> int:
    """Starts to count the process's peak memory anew; returns what it has now, in MiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status_mb("VmRSS")


def _status_mb(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) // 1024


def report(found: list[Outcome], command: str) -> str:
    """A table of outcomes by kind, and every fault."""
    lines = [
        f"{command}, {datetime.now(UTC):%Y-%m-%d}",
        described("pydantic", "optuna", "torch", "diffusers", "typer"),
        "",
        f"{'input':<16}{'cases':>7}{'valid':>7}{'one line':>10}{'faults':>8}"
        f"{'most CPU s':>11}{'most MB':>9}",
    ]
    kinds: dict[str, list[Outcome]] = collections.defaultdict(list)
    for one in found:
        kinds[one.kind].append(one)
    for kind, group in [*sorted(kinds.items()), ("all", found)]:
        ends = collections.Counter(one.end for one in group)
        lines.append(
            f"{kind:<16}{len(group):>7}{ends['loaded']:>7}{ends['refused']:>10}{ends['fault']:>8}"
            f"{max(one.seconds for one in group):>11.2f}{max(one.megabytes for one in group):>9}"
        )
    slow = [one for one in found if not one.is_within_limits]
    lines.append(f"\nover {SECONDS:g} s or {MEGABYTES} MB: {len(slow)}")
    lines += [f"  {one.number} {one.kind}: {one.seconds} s, {one.megabytes} MB" for one in slow]
    by_fault: dict[str, list[Outcome]] = collections.defaultdict(list)
    for one in found:
        if one.end == "fault":
            by_fault[f"{one.kind}: {one.what}"].append(one)
    lines.append(f"kinds of fault: {len(by_fault)}")
    for what, group in sorted(by_fault.items(), key=lambda item: -len(item[1])):
        lines.append(f"  {len(group):>4} x {what} (such as {group[0].number})")
    return "\n".join(lines)


def main() -> int:
    """0 if every case ended as it may, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000, help="damaged files and folders")
    parser.add_argument("--commands", type=int, default=300, help="damaged command lines")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--hang", type=float, default=60.0, help="seconds after which one hangs")
    parser.add_argument("--only", type=int, help="run this case here, and show its traceback")
    parser.add_argument("--work-from", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work_from is not None:
        work(args.cases, args.commands, args.seed, args.work_from)
        return 0
    if args.only is not None:
        from benchmarks.fuzz_cases import run_case, workplace

        with workplace(args.seed) as place:
            rng = random.Random(f"{args.seed} {args.only}")
            is_command = args.only >= args.cases
            found = run_case(place, rng, args.only, is_command=is_command, shows=True)
        sys.stdout.write(f"{found}\n")
        return 0
    results = list(outcomes(args.cases, args.commands, args.seed, args.hang))
    command = f"python -m benchmarks.fuzz --cases {args.cases} --commands {args.commands}"
    sys.stdout.write(report(results, f"{command} --seed {args.seed}") + "\n")
    return int(any(one.end == "fault" or not one.is_within_limits for one in results))


if __name__ == "__main__":
    sys.exit(main())
