"""PipeFusion on two GPUs of one host by each transport: peer memory, host memory, collectives.

    python -m benchmarks.transport --model sd3 --patches 2 3

Denoising loops of random weights, in turns; every run puts its plan in force anew.
"""

import argparse
import statistics
import sys
from datetime import UTC, datetime
from typing import get_args

import torch

from benchmarks.engines import plan_of
from benchmarks.jobs import MODELS, MODES, Job, patches_of, with_patches
from benchmarks.processes import Variant
from benchmarks.rank_measurements import with_transport
from ditplan.runtime.pipefusion.route import Transport
from ditplan.runtime.ranks.pool import RankPool


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
            found: dict[Transport, list[float]] = {name: [] for name in get_args(Transport)}
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
