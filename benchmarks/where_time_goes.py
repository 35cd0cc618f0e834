"""Where the time of a plan goes on two GPUs: products, attention, exchange, the rest, and gaps.

python -m benchmarks.where_time_goes --model sd3 --mesh ulysses2 --mode compile+graph
"""

import argparse
import sys

import torch

from benchmarks.engines import plan_of
from benchmarks.jobs import ATTENTION, MESHES, MODES, Job, patches_of, with_patches
from benchmarks.processes import Variant
from benchmarks.rank_measurements import WhereTimeGoes, where_time_goes
from ditplan.runtime.ranks.pool import RankPool


def main() -> None:
    """Profiles one plan and prints its parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=["sd3", "flux"], default="sd3")
    parser.add_argument("--pixels", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--mesh", choices=MESHES, default="ulysses2")
    parser.add_argument("--mode", choices=MODES, default="compile+graph")
    parser.add_argument("--patches", type=int, default=2, help="of pipefusion2")
    parser.add_argument("--attention", choices=ATTENTION, default="cudnn")
    asked = parser.parse_args()
    (mesh,) = with_patches([asked.mesh], [asked.patches])
    variant = Variant(mesh, asked.mode, asked.attention)
    job = Job("ours", asked.model, asked.pixels, asked.steps, (variant,))
    with RankPool(None, 2, "cuda") as pool:
        plan = plan_of(job.spec, job.workload, variant)
        ranks = pool.run(where_time_goes, job.spec, plan, timeout_s=300.0)
    name = torch.cuda.get_device_name(0)
    sys.stdout.write(f"{asked.model}, {mesh}, {asked.mode} on {name}\n")
    # without stages all ranks do alike
    for rank, found in enumerate(ranks if patches_of(mesh) else ranks[:1]):
        if found is None:
            raise SystemExit(f"rank {rank} took no part")
        show(rank, found)


def show(rank: int, found: WhereTimeGoes) -> None:
    """Prints one rank's part."""
    sys.stdout.write(f"rank {rank}: {found.latency_s:.4f} s\n")
    lines = sorted(found.kinds.items(), key=lambda item: -item[1])
    idle = found.latency_s - found.computing_s
    for kind, seconds in [*lines, ("nothing ran, or an exchange alone", idle)]:
        sys.stdout.write(f"{seconds:8.4f} s {seconds / found.latency_s:6.1%}  {kind}\n")
    for kernel, seconds, count in found.kernels:
        sys.stdout.write(f"{seconds:8.4f} s {count:6d} x  {kernel[:90]}\n")
    sys.stdout.write("nothing ran between\n")
    for ended, began, seconds, count in found.gaps:
        sys.stdout.write(f"{seconds:8.4f} s {count:6d} x  {ended[:50]:50} {began[:50]}\n")


if __name__ == "__main__":
    main()
