"""How long `run` of a plan takes from start to end, the first time and again in a new process.

    python -m benchmarks.warm_run --models sd3 flux-dev
    python -m benchmarks.warm_run --models sd3 flux-dev --against CHECKOUT    # in turns

Models have random weights of their true size, but for `sd3-tiny`, on as many GPUs (CPU ranks where
there are none) as `--ulysses` says. Each checkout has cache folders of its own, empty at first. The
runs of each: `first`, with nothing kept; `again`, twice; `elsewhere`, with the cache that torch
keeps by itself emptied, as in a new container that has the user's cache folder alone.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.machine import described
from ditplan.profiles.catalog import find_model
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import Mode
from ditplan.profiles.plan import PlannedModel, bare_plan
from ditplan.runtime.workers import device_kind

ROOT = Path(__file__).parents[1]
KINDS = ("first", "again", "again", "elsewhere")
MOST_S = 900


@dataclass(frozen=True)
class Build:
    """A checkout, what lines call it, and the folder of its caches and outputs."""

    checkout: Path
    name: str
    folder: Path

    @property
    def temporary(self) -> Path:
        """Where torch keeps compiled code by itself."""
        return self.folder / "inductor"

    def run(self, plan: Path) -> tuple[float, dict[str, float]]:
        """Seconds from the command's start to its end, and what it says in JSON."""
        words = ("run", "--plan", plan, "--prompt", "a lighthouse", "--out", self.folder / "x.png")
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.checkout),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.temporary),
        }
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-P", "-m", "ditplan", *map(str, words), "--json"],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=MOST_S,
            check=False,
        )
        took_s = time.perf_counter() - began
        if done.returncode:
            raise SystemExit(f"{self.name}: {done.stdout}{done.stderr[-3000:]}")
        for line in done.stderr.splitlines():
            if "warning" in line.lower():
                print(f"  {self.name}: {line}", flush=True)
        said: dict[str, float] = json.loads(done.stdout)
        return took_s, said


def saved_plan(name: str, ulysses: int, mode: Mode, folder: Path) -> Path:
    """A plan for a model's usual workload."""
    spec = find_model(name)
    dtype = "bfloat16" if device_kind() == "cuda" else "float32"
    work = spec.defaults.model_copy(update={"dtype": dtype})
    made = bare_plan(PlannedModel.of_spec(spec), work, Mesh(ulysses=ulysses))
    plan = made.configured(mode=mode).model_copy(update={"on_mismatch": "warn"})
    return plan.save(folder / f"{name}.json")


def rows(builds: list[Build], name: str, plan: Path) -> Iterator[str]:
    """A line for each run."""
    for kind in KINDS:
        for build in builds:
            if kind == "elsewhere":
                shutil.rmtree(build.temporary, ignore_errors=True)
            took_s, said = build.run(plan)
            yield (
                f"{name:10s} {kind:10s} {build.name:10s} {took_s:7.1f} "
                f"{said['end_to_end_s']:9.2f} {said['latency_s']:8.3f}"
            )


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["sd3", "flux-dev"])
    parser.add_argument("--ulysses", type=int, default=1, help="on so many GPUs")
    parser.add_argument("--mode", default="compile+graph")
    parser.add_argument("--against", type=Path, help="a checkout of another revision")
    asked = parser.parse_args()
    words = " ".join(sys.argv[1:])
    print(f"python -m benchmarks.warm_run {words}, {datetime.now(UTC).date()}")
    print(described("torch", "diffusers", "transformers"))
    show = ("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    if shutil.which(show[0]):
        print(subprocess.run(show, capture_output=True, text=True, check=False).stdout.strip())
    head = (
        f"{'model':10s} {'run':10s} {'build':10s} {'whole s':>7s} {'picture s':>9s} {'steps s':>8s}"
    )
    print(f"\n{head}")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        builds = []
        for name, checkout in (("other", asked.against), ("this", ROOT)):
            if checkout is not None:
                (folder / name).mkdir()
                builds.append(Build(checkout.resolve(), name, folder / name))
        for model in asked.models:
            plan = saved_plan(model, asked.ulysses, asked.mode, folder)
            for row in rows(builds, model, plan):
                print(row, flush=True)


if __name__ == "__main__":
    main()
