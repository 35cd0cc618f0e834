"""A job of a launcher that tells ranks in an order of its own: it attaches, and makes latents."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

import ditplan
from ditplan.profiles.errors import InputError
from ditplan.profiles.locations import Location
from ditplan.profiles.plan import ExecutionPlan
from ditplan.runtime.models.loading import load_pipeline
from tests.distributed.rank_tasks import denoise, same_start
from tests.distributed.small_models import small_sd3


def elsewhere(plan: ExecutionPlan) -> ExecutionPlan:
    """The plan for ranks of one host alone, which the job's aren't."""
    locations = tuple(
        Location(rank=one.rank, host="n9", device=place) for place, one in enumerate(plan.locations)
    )
    return plan.model_copy(update={"locations": locations})


def main() -> None:
    """Saves this rank's refusal, placement and latents beside the plan."""
    path = Path(sys.argv[1])
    plan = ditplan.load(path)
    refusal = ""
    try:
        ditplan.attach(elsewhere(plan))
    except InputError as error:
        refusal = str(error)
    place = ditplan.attach(plan)
    spec = small_sd3()
    pipeline = load_pipeline(spec, None, place.device, "float32")
    with ditplan.parallelize(pipeline, plan):
        words = same_start(spec, plan.workload, place.device)
        latents = denoise(pipeline, spec, plan.workload, words)
    said = {"refusal": refusal, "placement": place.plan.configuration.placement, "latents": latents}
    torch.save(said, path.with_suffix(f".{place.rank}.pt"))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
