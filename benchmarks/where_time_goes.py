"""Where the time of a plan goes on two GPUs: products, attention, exchange, the rest, and gaps.

python -m benchmarks.where_time_goes --model sd3 --mesh ulysses2 --mode compile+graph
"""

import argparse
import sys

import torch

from benchmarks.engines import plan_of
from benchmarks.jobs import ATTENTION, MESHES, MODES, Job
from benchmarks.processes import Variant
from benchmarks.rank_measurements import kernel_seconds
from ditplan.runtime.launch import RankPool


def main() -> None:
    """Profiles one plan and prints its parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=["sd3", "flux"], default="sd3")
    parser.add_argument("--pixels", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--mesh", choices=MESHES, default="ulysses2")
    parser.add_argument("--mode", choices=MODES, default="compile+graph")
    parser.add_argument("--patches", type=int, default=4, help="of pipefusion2")
    parser.add_argument("--attention", choices=ATTENTION, default="cudnn")
    asked = parser.parse_args()
    variant = Variant(asked.mesh, asked.mode, asked.attention)
    job = Job("ours", asked.model, asked.pixels, asked.steps, asked.patches, (variant,))
    with RankPool(None, 2, "cuda") as pool:
        plan = plan_of(job.spec, job.workload, variant, job.patches)
        found = pool.run(kernel_seconds, job.spec, plan, timeout_s=300.0)[0]
    if found is None:
        raise SystemExit("rank 0 took no part")
    latency_s, kinds, kernels = found
    name = torch.cuda.get_device_name(0)
    sys.stdout.write(f"{asked.model}, {asked.mesh}, {asked.mode} on {name}: {latency_s:.4f} s\n")
    for kind, seconds in sorted(kinds.items(), key=lambda item: -item[1]):
        sys.stdout.write(f"{seconds:8.4f} s {seconds / latency_s:6.1%}  {kind}\n")
    rest = latency_s - sum(kinds.values())
    sys.stdout.write(
        f"{rest:8.4f} s {rest / latency_s:6.1%}  gaps between kernels, less what ran side by side\n"
    )
    for kernel, seconds, count in kernels:
        sys.stdout.write(f"{seconds:8.4f} s {count:6d} x  {kernel[:90]}\n")


if __name__ == "__main__":
    main()
