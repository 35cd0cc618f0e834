"""A rank of `benchmarks.production_requests`: a job that serves requests under a plan.

torchrun starts it outside the checkout, in a folder with the plan, the model and the requests.
"""

import json
import time
from pathlib import Path
from typing import Any

import psutil
import torch

import ditplan
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.workload import Workload
from ditplan.runtime.models.loading import (
    call_arguments,
    load_pipeline,
    pictures_of,
    prompt_embeddings,
)


def latents_of(pipeline: Any, spec: ModelSpec, work: Workload) -> torch.Tensor:
    """The final latents of a request, with random embeddings."""
    words = prompt_embeddings(spec, work, torch.device("cpu"), seed=1)
    noise = torch.Generator().manual_seed(0)
    arguments = words | call_arguments(spec, work)
    with torch.no_grad():
        result = pipeline(**arguments, generator=noise, output_type="latent")
    found: torch.Tensor = pictures_of(result)
    return found


def main() -> None:
    """Serves all requests, first on this device alone; writes what was counted."""
    plan = ditplan.load("plan.json")
    spec = ModelSpec.load("model.json")
    works = [Workload.model_validate(one) for one in json.loads(Path("requests.json").read_text())]
    pipeline = load_pipeline(spec, None, torch.device("cpu"), plan.workload.dtype)
    alone = [latents_of(pipeline, spec, work) for work in works]
    sizes = list(dict.fromkeys((work.height, work.width) for work in works))
    seconds, off, memory_bytes = [], [], []
    with ditplan.parallelize(pipeline, plan) as served:
        begin = time.monotonic()
        ditplan.warm_up(served, plan, sizes)
        warm_up_s, warm = time.monotonic() - begin, ditplan.counters(served)
        for work, right in zip(works, alone, strict=True):
            begin = time.monotonic()
            found = latents_of(served, spec, work)
            seconds.append(time.monotonic() - begin)
            off.append(float((found - right).abs().max()))
            memory_bytes.append(psutil.Process().memory_info().rss)
        made = ditplan.counters(served) - warm
        counted = {
            "package": ditplan.__file__,
            "warm_up_s": warm_up_s,
            "warm": (warm.compilations, warm.captures),
            "after": (made.compilations, made.captures),
            "seconds": seconds,
            "off": off,
            "memory_bytes": memory_bytes,
        }
        rank = torch.distributed.get_rank()
    Path(f"rank{rank}.json").write_text(json.dumps(counted))


if __name__ == "__main__":
    main()
