"""What commands import in their own process: seconds, modules and large libraries.

    python -m benchmarks.start_up
    python -m benchmarks.start_up --against CHECKOUT    # of another revision, in turns

Seconds are those that `python -X importtime` gives for all modules together; the fastest of some
processes counts. `run` makes a picture of two steps with `sd3-tiny` on two CPU ranks, whose own
imports don't count.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.machine import described
from ditplan.profiles.catalog import find_model
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.plan import ExecutionPlan, PlannedModel, bare_plan

ROOT = Path(__file__).parents[1]
LARGE = ("torch", "torch._dynamo", "torch._inductor", "diffusers", "transformers", "peft")
LARGE += ("numpy", "networkx", "optuna", "pydantic")
PAPER = ("--model", "sd3", "--cluster", "8xa100-nvlink")
COMMANDS: dict[str, tuple[str, ...]] = {
    "--help": ("--help",),
    "list models": ("list", "models"),
    "show PLAN": ("show", "plan.json"),
    "simulate on paper": ("simulate", *PAPER),
    "tune on paper": ("tune", *PAPER, "--out", "made.json", "--force"),
    "run --dry-run": ("run", "--plan", "plan.json", "--prompt", "x", "--out", "x.png", "--dry-run"),
    "run": ("run", "--plan", "plan.json", "--prompt", "x", "--out", "x.png"),
}


@dataclass(frozen=True)
class Imports:
    """What a process imported: seconds of all of it, how many modules, which large ones."""

    seconds: float
    modules: int
    large: tuple[str, ...]


def imports_of(words: Sequence[str], checkout: Path, folder: Path) -> Imports:
    """What a command of a checkout imports, run in a folder."""
    done = subprocess.run(
        [sys.executable, "-P", "-X", "importtime", "-m", "ditplan", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}: {done.stderr[-2000:]}")
    own_us: dict[str, int] = {}
    for line in done.stderr.splitlines():
        if line.startswith("import time:") and "[us]" not in line:
            own, _, name = line.removeprefix("import time:").split("|")
            own_us[name.strip()] = int(own)
    large = tuple(name for name in LARGE if name in own_us)
    return Imports(sum(own_us.values()) / 1e6, len(own_us), large)


def planned(folder: Path) -> None:
    """Writes a plan for two ranks of this machine."""
    spec = find_model("sd3-tiny")
    work = spec.defaults.model_copy(update={"steps": 2, "dtype": "float32"})
    plan: ExecutionPlan = bare_plan(PlannedModel.of_spec(spec), work, Mesh(cfg=2))
    plan.model_copy(update={"on_mismatch": "warn"}).save(folder / "plan.json")


def rows(checkouts: Sequence[Path], repeats: int) -> Iterator[str]:
    """A line for each command and checkout."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        planned(folder)
        for name, words in COMMANDS.items():
            found: dict[Path, list[Imports]] = {checkout: [] for checkout in checkouts}
            for _ in range(repeats):
                for checkout in checkouts:
                    found[checkout].append(imports_of(words, checkout, folder))
            for runs in found.values():
                best = min(runs, key=lambda one: one.seconds)
                large = ", ".join(best.large)
                yield f"{name:18s} {best.seconds:7.2f} {best.modules:8d}  {large}"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", type=Path, help="a checkout of another revision")
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    checkouts = [*([asked.against.resolve()] if asked.against else []), ROOT]
    words = " ".join(sys.argv[1:])
    print(f"python -m benchmarks.start_up {words}, {datetime.now(UTC).date()}")
    print(described("torch", "diffusers", "pydantic"), end="\n\n")
    if asked.against:
        print("of two lines the first is of the other revision")
    print(f"{'command':18s} {'s':>7s} {'modules':>8s}  large libraries")
    for row in rows(checkouts, asked.repeats):
        print(row, flush=True)


if __name__ == "__main__":
    main()
