"""PipeFusion on two GPUs of one host with either transport: copy engines, or NCCL's kernels.

    python -m benchmarks.transport --model sd3 --patches 2 3

Denoising loops of random weights, in turns; every run puts its plan in force anew.
"""

import argparse
import statistics
import sys
from datetime import UTC, datetime

import torch

from benchmarks.engines import plan_of
from benchmarks.jobs import MODELS, MODES, Job, patches_of, with_patches
from benchmarks.processes import Variant
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import ExecutionPlan
from ditplan.runtime import pipefusion
from ditplan.runtime.generation import RankRun, measure_plan
from ditplan.runtime.groups import AxisGroup, RankContext
from ditplan.runtime.launch import RankPool

TRANSPORTS = ("copy engines", "NCCL")


def with_transport(
    context: RankContext, spec: ModelSpec, plan: ExecutionPlan, transport: str
) -> RankRun | None:
    """A run of the plan; stages are connected when it is put in force."""
    context.kept.pop("prepared plans", None)
    can_write_to_peers = pipefusion.can_write_to_peers
    if transport == "NCCL":
        pipefusion.can_write_to_peers = no_peers
    try:
        return measure_plan(context, spec, None, plan)
    finally:
        pipefusion.can_write_to_peers = can_write_to_peers


def no_peers(_group: AxisGroup, _context: RankContext) -> bool:
    """As if no GPU could write into another's memory."""
    return False


def main() -> None:
    """Runs each number of patches with both transports."""
    parser = argparse.ArgumentParser(description="PipeFusion's transport on two GPUs")
    parser.add_argument("--model", choices=MODELS, default="sd3")
    parser.add_argument("--pixels", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--mode", choices=MODES, default="compile+graph")
    parser.add_argument("--patches", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    sys.stdout.write(
        f"2 x {torch.cuda.get_device_name(0)}, torch {torch.__version__}, "
        f"{datetime.now(UTC):%Y-%m-%d}, python -m benchmarks.transport {' '.join(sys.argv[1:])}\n"
    )
    with RankPool(None, 2, "cuda") as pool:
        for mesh in with_patches(["pipefusion2"], asked.patches):
            variant = Variant(mesh, asked.mode, "cudnn")
            job = Job("ours", asked.model, asked.pixels, asked.steps, (variant,))
            plan = plan_of(job.spec, job.workload, variant)
            found: dict[str, list[float]] = {transport: [] for transport in TRANSPORTS}
            for _ in range(asked.rounds):
                for transport, seconds in found.items():
                    runs = pool.run(with_transport, job.spec, plan, transport, timeout_s=400.0)
                    seconds.append(max(run.latency_s for run in runs if run is not None))
            for transport, seconds in found.items():
                sys.stdout.write(
                    f"{asked.model} {asked.pixels}px, {patches_of(mesh)} patches, {transport}: "
                    f"{statistics.median(seconds):.4f} s of {sorted(seconds)}\n"
                )


if __name__ == "__main__":
    main()
