"""What the benchmark of prompt lengths asks of a rank."""

import sys
import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import ExecutionPlan
from ditplan.profiles.workload import Workload
from ditplan.runtime.groups import RankContext
from ditplan.runtime.models.loading import load_pipeline
from ditplan.runtime.native import parallelize
from ditplan.serving import Counters, counters, warm_up
from ditplan.testing.on_ranks import latents_of_call


@dataclass(frozen=True)
class Found:
    """Seconds of the warm-up and of requests by length, and what was made in them."""

    warm_up_s: float
    warm: Counters
    after: Counters
    requests: list[tuple[int, float, float]]
    off: float
    memory_bytes: tuple[int, int]


def measure(
    context: RankContext, spec: ModelSpec, plans: list[ExecutionPlan], lengths: list[int]
) -> Found:
    """Runs a request of each length under the first plan, and one of the median under the second,
    in turns.
    """
    context = replace(context, keeps_graphs=True)
    rounding, fixed = plans
    work = rounding.workload
    pipeline = load_pipeline(spec, None, context.device, work.dtype)
    say(f"loaded on {context.device}")
    median = work.model_copy(update={"text_tokens": sorted(lengths)[len(lengths) // 2]})
    shortest = work.model_copy(update={"text_tokens": min(lengths), "steps": 2})
    alone = latents_of_call(pipeline, spec, shortest)
    begin = time.monotonic()
    with parallelize(pipeline, rounding, context):
        warm = warm_up(pipeline, rounding)
        wait(context)
        warm_up_s = time.monotonic() - begin
        found = latents_of_call(pipeline, spec, shortest)
        off = float((found - alone).float().norm() / alone.float().norm())
    say(f"warm after {warm_up_s:.1f} s")
    with parallelize(pipeline, fixed, context):
        warm_up(pipeline, fixed.model_copy(update={"workload": median}))
    made, before_bytes, requests = Counters(0, 0), memory_of(context), []
    for length in lengths:
        asked = work.model_copy(update={"text_tokens": length})
        rounded_s, new = timed(pipeline, spec, rounding, asked, context)
        fixed_s, _ = timed(pipeline, spec, fixed, median, context)
        made = Counters(made.compilations + new.compilations, made.captures + new.captures)
        requests.append((length, rounded_s, fixed_s))
        say(f"{length} tokens: {rounded_s:.4g} s, the fixed length {fixed_s:.4g} s")
    return Found(warm_up_s, warm, made, requests, off, (before_bytes, memory_of(context)))


def timed(
    pipeline: Any, spec: ModelSpec, plan: ExecutionPlan, work: Workload, context: RankContext
) -> tuple[float, Counters]:
    """Seconds of a request under a plan, and what was compiled and captured in it."""
    with parallelize(pipeline, plan, context):
        before = counters(pipeline)
        wait(context)
        begin = time.monotonic()
        latents_of_call(pipeline, spec, work)
        wait(context)
        return time.monotonic() - begin, counters(pipeline) - before


def wait(context: RankContext) -> None:
    """Until the device has done all that was asked."""
    if context.device.type == "cuda":
        torch.cuda.synchronize(context.device)


def memory_of(context: RankContext) -> int:
    """Bytes that the process holds on its GPU."""
    on_gpu = context.device.type == "cuda"
    return torch.cuda.memory_reserved(context.device) if on_gpu else 0


def say(text: str) -> None:
    """Reports progress."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
