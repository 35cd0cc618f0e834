"""Times ours, diffusers and xDiT on two GPUs, interleaved in one run.

    python -m benchmarks.two_gpu --model sd3 --pixels 1024 2048 --out results.json

Only the denoising loop is timed: prompt embeddings in, latents out, random weights of the true
architecture in bfloat16. What is compared was alive at the same time and ran in turns. Run it in
the repository's root, with diffusers and xfuser installed.
"""

import argparse
import dataclasses
import datetime
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from rich.console import Console

from benchmarks import jobs
from benchmarks.interleaved import Limits, Match, pack
from benchmarks.processes import Contestant
from benchmarks.standings import failures, standings, table, verdicts
from ditplan.profiles.errors import InputError
from ditplan.profiles.record import replacing

GIB = 2**30
RESERVE_BYTES = 2 * GIB
WIDTH = 180


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.two_gpu",
        description="Times ours, diffusers and xDiT on two GPUs, interleaved in one run.",
    )
    made.add_argument("--model", choices=list(jobs.MODELS), default="sd3")
    made.add_argument("--pixels", type=int, nargs="+", default=[1024, 2048])
    made.add_argument("--steps", type=int, default=20)
    made.add_argument("--contestants", nargs="+", choices=jobs.ENGINES, default=jobs.ENGINES)
    made.add_argument("--meshes", nargs="+", choices=jobs.MESHES, default=jobs.EXACT_MESHES)
    made.add_argument("--modes", nargs="+", choices=jobs.MODES, default=jobs.MODES)
    made.add_argument(
        "--attention",
        nargs="+",
        choices=jobs.ATTENTION,
        default=["cudnn"],
        help="kernels of ours, and of xDiT where it has them",
    )
    made.add_argument(
        "--apart", action="store_true", help="processes of its own for each variant of a peer"
    )
    made.add_argument("--patches", type=int, nargs="+", default=[2], help="of pipefusion2")
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument(
        "--budget", type=float, default=float("inf"), help="seconds after which nothing is started"
    )
    made.add_argument(
        "--start-timeout", type=float, default=300, help="seconds to load, compile and warm up in"
    )
    made.add_argument("--run-timeout", type=float, default=180, help="seconds for one run")
    made.add_argument(
        "--memory-gb", type=float, help="of a GPU for all that is alive at once; default: all"
    )
    made.add_argument("--out", type=Path, default=Path("results.json"))
    made.add_argument(
        "--list", action="store_true", help="print who would take part; needs no GPUs"
    )
    return made


def gpus() -> list[dict[str, str]]:
    """Name, memory in MiB and driver of each GPU that nvidia-smi lists; none without it."""
    fields = ("name", "memory.total", "driver_version", "clocks.max.sm", "power.limit")
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return []
    lines = done.stdout.strip().splitlines()
    return [
        dict(zip(fields, (value.strip() for value in line.split(",")), strict=True))
        for line in lines
    ]


@dataclass(frozen=True)
class Case:
    """One picture size of one model, and who takes part."""

    title: str
    facts: dict[str, Any]
    ours: Contestant | None
    peers: tuple[Contestant, ...]

    @property
    def contestants(self) -> tuple[Contestant, ...]:
        """All of them, ours first."""
        return ((self.ours,) if self.ours else ()) + self.peers


class Results:
    """All cases so far; written again whenever there is something new."""

    def __init__(self, out: Path, command: str, devices: list[dict[str, str]]) -> None:
        self._out = out
        self._facts: dict[str, Any] = {
            "command": command,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "gpus": devices,
            "software": {},
        }
        self._cases: list[tuple[Case, Match]] = []

    def add(self, case: Case, match: Match) -> None:
        """Has a case's results kept and written from now on."""
        self._cases.append((case, match))

    def save(self) -> None:
        """Writes what there is, whole or not at all."""
        for _, match in self._cases:
            self._facts["software"] |= match.software
        cases = [
            case.facts | {"rows": [dataclasses.asdict(row) for row in match.rows]}
            for case, match in self._cases
        ]
        text = json.dumps(self._facts | {"cases": cases}, indent=1)
        with replacing(self._out) as temporary:
            temporary.write_text(text + "\n")

    def show(self, console: Console) -> None:
        """Prints tables and verdicts."""
        for name, value in self._facts.items():
            console.print(f"{name}: {value}", soft_wrap=True, highlight=False, markup=False)
        for case, match in self._cases:
            found = standings(match.rows)
            console.print(table(case.title, found))
            for line in (*verdicts(found), *failures(match.rows)):
                console.print(line, soft_wrap=True, highlight=False, markup=False)


def play(
    found: Sequence[Case],
    given: argparse.Namespace,
    room_bytes: int,
    results: Results,
    logs: Path,
) -> None:
    """Every case in turn, with processes of its own."""
    begin = time.monotonic()
    limits = Limits(given.start_timeout, given.run_timeout, begin + given.budget)

    def report(line: str) -> None:
        print(f"{time.monotonic() - begin:6.0f} s  {line}", file=sys.stderr, flush=True)

    for case in found:
        match = Match(case.ours, logs, limits, report, results.save)
        results.add(case, match)
        groups = pack(case.peers, case.ours.memory_bytes if case.ours else 0, room_bytes)
        for number, group in enumerate(groups):
            names = ", ".join(contestant.name for contestant in group)
            report(f"{case.title}, group {number + 1}: {names or 'no peers'}")
        match.play(groups, given.rounds)


def cases(given: argparse.Namespace, wanted: jobs.Wanted) -> list[Case]:
    """What is to be played, a case for each picture size."""
    found = []
    for pixels in given.pixels:
        asked = (given.model, pixels, given.steps, wanted)
        title = f"{given.model}, {pixels} x {pixels} pixels, {given.steps} steps, bfloat16"
        facts = {"model": given.model, "pixels": pixels, "steps": given.steps}
        found.append(Case(title, facts, jobs.reference(*asked), tuple(jobs.peers(*asked))))
    return found


def _print_contestants(found: Sequence[Case]) -> None:
    for case in found:
        print(case.title)
        for one in case.contestants:
            gib = one.memory_bytes / GIB
            for variant in one.variants:
                how = f"{variant.mesh}, {variant.mode}, attention {variant.attention}"
                print(f"  {one.name}: {how}, about {gib:.0f} GiB of each GPU")


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; 2 where it can't."""
    given = parser().parse_args(arguments)
    wanted = jobs.Wanted(
        given.contestants,
        jobs.with_patches(given.meshes, given.patches),
        given.modes,
        given.attention,
        given.apart,
    )
    try:
        found = cases(given, wanted)
    except InputError as error:
        print(f"two_gpu: {error}", file=sys.stderr)
        return 2
    if given.list:
        _print_contestants(found)
        return 0
    devices = gpus()
    needed = max((one.ranks for case in found for one in case.contestants), default=1)
    if len(devices) < needed:
        print(
            f"two_gpu: this needs {needed} NVIDIA GPU{'s' * (needed > 1)}, nvidia-smi lists "
            f"{len(devices)}",
            file=sys.stderr,
        )
        return 2
    room_bytes = int(min(float(device["memory.total"]) for device in devices[:needed]) * 2**20)
    room_bytes -= RESERVE_BYTES
    if given.memory_gb is not None:
        room_bytes = int(given.memory_gb * GIB)
    command = shlex.join(["python", "-m", "benchmarks.two_gpu", *(arguments or sys.argv[1:])])
    results = Results(given.out, command, devices)
    signal.signal(signal.SIGTERM, _stop)
    logs = Path(tempfile.mkdtemp(prefix="two_gpu-"))
    threads = max(1, (os.cpu_count() or 1) // 8)
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(threads))
    print(f"logs: {logs}", file=sys.stderr, flush=True)
    try:
        play(found, given, room_bytes, results, logs)
    finally:
        results.save()
        results.show(Console(width=WIDTH))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
