"""One rank of one contestant: loads a model, warms up variants and times runs as it is told.

Started by `benchmarks.processes`, whose docstring says what it is told and what it answers.
"""

import argparse
import faulthandler
import gc
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch._dynamo.utils import counters

from benchmarks.engines import ENGINES, Pipeline, Place
from benchmarks.jobs import Job
from benchmarks.processes import SHOW_STACKS, Variant
from ditplan.runtime.models.loading import prompt_embeddings

GUIDANCE_SCALE = 5.0
WARMUP_CALLS = 2
SHORT_STEPS = 2

FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What keeps one variant from running; the others may still do."""


class Rank:
    """Warms up and times an engine's variants on this rank."""

    def __init__(self, job: Job, place: Place) -> None:
        self._job, self._place = job, place
        self._engine = ENGINES[job.engine](job, place)
        self._words = prompt_embeddings(job.spec, job.workload, place.device, seed=1)

    def warm_up(self, variant: Variant) -> dict[str, Any]:
        """Compiles what is compiled, then has it run."""
        with self._engine.in_force(variant) as pipeline:
            for _ in range(1 + WARMUP_CALLS):
                if pipeline is not None:
                    self._call(pipeline, SHORT_STEPS)
        return {}

    def run(self, variant: Variant) -> dict[str, Any]:
        """One timed run, after a short one that isn't."""
        gc.collect()
        torch.cuda.empty_cache()
        before = counters["stats"]["unique_graphs"]
        with self._engine.in_force(variant) as pipeline:
            if pipeline is None:
                return {"seconds": None}
            self._call(pipeline, SHORT_STEPS)
            torch.cuda.reset_peak_memory_stats()
            self._meet(variant)
            start = time.perf_counter()
            latents = self._call(pipeline, self._job.steps)
            torch.cuda.synchronize()
            self._meet(variant)
            seconds = time.perf_counter() - start
            return {
                "seconds": seconds,
                "clock_mhz": torch.cuda.clock_rate(),
                "memory_bytes": torch.cuda.max_memory_reserved(),
                "recompiled": counters["stats"]["unique_graphs"] - before,
                "rms": None if latents is None else float(latents.float().square().mean().sqrt()),
            }

    def _meet(self, variant: Variant) -> None:
        torch.cuda.synchronize()
        if variant.gpus > 1:
            dist.barrier(device_ids=[self._place.rank])
            torch.cuda.synchronize()

    def _call(self, pipeline: Pipeline, steps: int) -> torch.Tensor | None:
        with torch.no_grad():
            made = pipeline(
                **self._words,
                height=self._job.pixels,
                width=self._job.pixels,
                num_inference_steps=steps,
                guidance_scale=GUIDANCE_SCALE,
                generator=torch.Generator("cpu").manual_seed(0),
                output_type="latent",
            )
        # xDiT gives its result to the last rank alone
        latents: torch.Tensor | None = None if made is None else made.images
        return latents


def software() -> dict[str, str]:
    """Versions of what takes part in a run."""
    versions = {"torch": torch.__version__, "CUDA": str(torch.version.cuda)}
    versions["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))
    versions["cuDNN"] = str(torch.backends.cudnn.version())
    for package in ("diffusers", "xfuser", "transformers", "flash-attn", "flash-attn-4"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def attempt(task: Callable[[Variant], dict[str, Any]], variant: Variant) -> dict[str, Any]:
    """What the task answers, or why it failed."""
    try:
        return task(variant)
    except FAILURES as error:
        reason = str(error).strip().partition("\n")[0]
        return {"failed": f"{type(error).__name__}: {reason}"[:300]}


def main() -> None:
    """Serves until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--job", required=True, type=Job.from_json)
    parser.add_argument("--replies", required=True, type=int)
    given = parser.parse_args()
    job: Job = given.job
    os.set_inheritable(given.replies, False)
    faulthandler.register(SHOW_STACKS)
    with os.fdopen(given.replies, "w") as replies:
        place = Place.from_environment()
        rank = Rank(job, place)
        print(json.dumps({"software": software()}), file=replies, flush=True)
        for variant in job.variants:
            print(json.dumps(attempt(rank.warm_up, variant)), file=replies, flush=True)
        for line in sys.stdin:
            answer = attempt(rank.run, job.variants[int(line)])
            print(json.dumps(answer), file=replies, flush=True)


if __name__ == "__main__":
    main()
