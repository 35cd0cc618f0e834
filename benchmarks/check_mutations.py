"""Whether `check` notices faults that are planted in the cost model, and nothing else.

    python -m benchmarks.check_mutations

Each of 30 faults and of 10 harmless changes is made in a copy of the tree, where the project's
baseline is checked, the quick files first: a fault is caught by the first of them in which a case
fails. A harmless change has to pass all of them.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from queue import SimpleQueue

from benchmarks.check_mutants import HARMLESS, MUTANTS, Mutant
from benchmarks.machine import described

ROOT = Path(__file__).parents[1]
COPIED = ("ditplan", "planner", "profiles", "runtime", "cli.py", "benchmarks/measured")
BASELINE = ROOT / "benchmarks" / "baseline"
STAGES = (
    ("measured", "2xh100-nvlink", "2xh200-nvlink"),
    ("4xa100-pcie",),
    ("2x8xl40-pcie-eth100",),
    ("8xh100-nvlink",),
    ("8xa100-nvlink",),
    ("8xl20-pcie",),
)
"""Files of the baseline, quick ones first."""

LIMIT_S = 1500


@dataclass(frozen=True)
class Outcome:
    """What the check said of a change: which files were checked, the failed cases of the last of
    them, and what it said of the first of these.
    """

    mutant: Mutant
    stage: str
    failed: int
    why: str

    @property
    def is_as_wanted(self) -> bool:
        """Caught if it is a fault, passed if it is harmless."""
        return (self.failed > 0) != (self.mutant.kind == "harmless")


def copied_to(folder: Path) -> Path:
    """A copy of the tree, and a folder of the baseline for each stage."""
    ignored = shutil.ignore_patterns("__pycache__", "sd3-tiny")
    for name in COPIED:
        source, target = ROOT / name, folder / name
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True, ignore=ignored)
        else:
            shutil.copy(source, target)
    for number, names in enumerate(STAGES):
        stage = folder / "benchmarks" / f"stage{number}"
        stage.mkdir()
        for name in names:
            shutil.copy(BASELINE / f"{name}.json", stage)
    return folder


def checked_in(folder: Path, stage: int, core: int) -> tuple[int, str]:
    """How many cases of a stage fail there, and what is said of the first.

    Raises:
        RuntimeError: the check itself ended otherwise than it may.
    """
    command = ["taskset", "-c", str(core), sys.executable, "-B", "cli.py", "check", "--json"]
    done = subprocess.run(
        [*command, "--baseline", f"benchmarks/stage{stage}"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    if done.returncode not in (0, 1) or not done.stdout.startswith("{"):
        raise RuntimeError(f"check ended with {done.returncode}: {done.stdout}{done.stderr}")
    found = json.loads(done.stdout)
    faults = [case["faults"][0] for case in found["cases"] if case["faults"]]
    return found["failed"], faults[0] if faults else ""


def outcome_of(mutant: Mutant, folder: Path, core: int) -> Outcome:
    """Makes the change, checks stage by stage until a case fails, and takes the change back."""
    path = folder / mutant.path
    kept = path.read_text()
    if kept.count(mutant.old) != 1:
        raise RuntimeError(f"{mutant.path} has {kept.count(mutant.old)} times: {mutant.old}")
    path.write_text(kept.replace(mutant.old, mutant.new))
    try:
        for number, names in enumerate(STAGES):
            failed, why = checked_in(folder, number, core)
            if failed:
                return Outcome(mutant, names[0], failed, why)
        return Outcome(mutant, "all", 0, "")
    finally:
        path.write_text(kept)


def outcomes_of(mutants: Sequence[Mutant], cores: Sequence[int]) -> Iterator[Outcome]:
    """Tries each change, in a copy for each core."""
    with tempfile.TemporaryDirectory() as room, ThreadPoolExecutor(len(cores)) as pool:
        copies: SimpleQueue[tuple[Path, int]] = SimpleQueue()
        for core in cores:
            folder = Path(room) / str(core)
            (folder / "benchmarks").mkdir(parents=True)
            copies.put((copied_to(folder), core))

        def tried(mutant: Mutant) -> Outcome:
            folder, core = copies.get()
            try:
                return outcome_of(mutant, folder, core)
            finally:
                copies.put((folder, core))

        yield from pool.map(tried, mutants)


def main() -> int:
    """Prints the table; 1 where fewer than nine in ten faults are caught, or a harmless change
    isn't passed.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cores", type=int, nargs="+", default=[0, 1], help="which to use")
    parser.add_argument("--only", default="", help="only changes whose line below has this text")
    args = parser.parse_args()
    began_s = time.monotonic()
    chosen = [
        mutant
        for mutant in (*MUTANTS, *HARMLESS)
        if args.only in f"{mutant.kind} {mutant.what} {mutant.path}"
    ]
    print(f"python -m benchmarks.check_mutations, {datetime.now(UTC):%Y-%m-%d}")
    print(f"{described('pydantic', 'networkx', 'optuna')}\n")
    found = []
    for outcome in outcomes_of(chosen, args.cores):
        found.append(outcome)
        mutant = outcome.mutant
        said = f"{outcome.failed} fail in {outcome.stage}" if outcome.failed else "passes all files"
        mark = "" if outcome.is_as_wanted else "  NOT AS WANTED"
        print(f"{mutant.kind:<10} {mutant.what:<44} {mutant.path:<34} {said}{mark}", flush=True)
        if outcome.why:
            print(f"{'':<11}{outcome.why[:150]}", flush=True)
    planted = [one for one in found if one.mutant.kind != "harmless"]
    harmless = [one for one in found if one.mutant.kind == "harmless"]
    caught, passed = (sum(one.is_as_wanted for one in some) for some in (planted, harmless))
    print(
        f"\n{caught} of {len(planted)} faults caught, {passed} of {len(harmless)} harmless changes"
    )
    print(f"passed, in {time.monotonic() - began_s:.0f} s")
    return int(caught < 0.9 * len(planted) or passed < len(harmless))


if __name__ == "__main__":
    sys.exit(main())
