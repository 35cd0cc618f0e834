"""A job as a user writes it: load a plan, put it in force, call the pipeline."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

import ditplan
from ditplan.runtime.models.loading import load_pipeline
from tests.distributed.rank_tasks import denoise, same_start
from tests.distributed.small_models import small_sd3


def main() -> None:
    """Saves each rank's latents beside the plan."""
    path = Path(sys.argv[1])
    plan = ditplan.ExecutionPlan.load(path)
    spec = small_sd3()
    pipeline = load_pipeline(spec, None, torch.device("cpu"), "float32")
    with ditplan.parallelize(pipeline, plan):
        words = same_start(spec, plan.workload, torch.device("cpu"))
        torch.save(
            denoise(pipeline, spec, plan.workload, words),
            path.with_suffix(f".{dist.get_rank()}.pt"),
        )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
