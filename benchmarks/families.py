"""Models of all families at their true sizes, with random weights, through their own pipelines.

On two GPUs the exact plans of two against one GPU, on one GPU its modes against each other; each
model's plans in turns, medians of a step.

python -m benchmarks.families --models pixart-sigma wan2.1-1.3b --steps 8
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import get_args

import torch

from ditplan.profiles.catalog import find_model, model_names
from ditplan.profiles.errors import InputError
from ditplan.profiles.family import family_of
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import Mode, ModelSpec
from ditplan.profiles.plan import ExecutionPlan, PlannedModel, bare_plan
from ditplan.runtime.generation import measure_plan
from ditplan.runtime.ranks.pool import RankError, RankPool

MODES: tuple[Mode, ...] = ("eager", "compile+graph")


def plans_of(spec: ModelSpec, gpus: int, steps: int, modes: Sequence[Mode]) -> list[ExecutionPlan]:
    """One GPU in these modes, and where there are two what they can do together."""
    work = spec.defaults.model_copy(update={"steps": steps, "dtype": "bfloat16"})
    meshes = [Mesh()]
    if gpus == 2:
        split = family_of(spec.transformer_class).guidance != "embedded" and work.passes > 1
        meshes += [Mesh(ulysses=2), *([Mesh(cfg=2)] if split else [])]
    planned = PlannedModel.of_spec(spec)
    return [bare_plan(planned, work, mesh, mode=mode) for mesh in meshes for mode in modes]


def measure(
    pool: RankPool, spec: ModelSpec, plans: list[ExecutionPlan], rounds: int, timeout_s: float
) -> None:
    """Prints a line for each plan that ran, also where another one failed."""
    found: dict[int, list[tuple[float, int]]] = {}
    begin = time.monotonic()
    try:
        for number, plan in list(enumerate(plans)) * rounds:
            runs = pool.run(measure_plan, spec, None, plan, timeout_s=timeout_s)
            used = [run for run in runs if run is not None]
            slowest = max(run.latency_s for run in used)
            took_s, begin = time.monotonic() - begin, time.monotonic()
            sys.stderr.write(
                f"{took_s:6.1f} s: {plan.mesh}, {plan.configuration.mode}, {slowest:.3f} s\n"
            )
            found.setdefault(number, []).append((slowest, max(run.memory_bytes for run in used)))
    finally:
        show(spec, [(plans[number], runs) for number, runs in found.items()])


def show(spec: ModelSpec, found: list[tuple[ExecutionPlan, list[tuple[float, int]]]]) -> None:
    """Prints a line for each plan, by the seconds and bytes of its runs."""
    medians = [statistics.median(seconds for seconds, _ in runs) for _, runs in found]
    for (plan, runs), median_s in zip(found, medians, strict=True):
        step_ms = 1000 * median_s / plan.workload.steps
        memory_gb = max(memory for _, memory in runs) / 1e9
        sys.stdout.write(
            f"{spec.name:16} {plan.mesh!s:10} {plan.configuration.mode:14} "
            f"{step_ms:9.1f} ms a step {medians[0] / median_s:5.2f} x {memory_gb:6.1f} GB\n"
        )
    sys.stdout.flush()


def main() -> None:
    """Measures the models asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=model_names(), required=True)
    parser.add_argument("--modes", nargs="+", choices=get_args(Mode), default=MODES)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=240.0, help="seconds for a run")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no model after these")
    asked = parser.parse_args()
    started = time.monotonic()
    gpus = min(2, torch.cuda.device_count())
    sys.stdout.write(
        f"{gpus} x {torch.cuda.get_device_name(0)}, torch {torch.__version__}, "
        f"{datetime.now(UTC):%Y-%m-%d}, python -m benchmarks.families {' '.join(sys.argv[1:])}\n"
    )
    for name in asked.models:
        if time.monotonic() - started > asked.seconds:
            sys.stdout.write(f"{name}: not started, time is up\n")
            continue
        spec = find_model(name)
        sys.stdout.write(f"{name}: {spec.defaults}\n")
        # a process of its own for each model: weights of the one before are gone
        try:
            with RankPool(None, gpus, "cuda") as pool:
                plans = plans_of(spec, gpus, asked.steps, asked.modes)
                measure(pool, spec, plans, asked.rounds, asked.timeout)
        except (InputError, RankError) as error:
            sys.stdout.write(f"{name}: {error}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
