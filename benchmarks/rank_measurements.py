"""What ranks do for the benchmarks: functions that a pool sends."""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from ditplan.profiles.catalog import find_model, shipped_weights
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import ExecutionPlan
from ditplan.profiles.rank_run import RankRun
from ditplan.runtime.generation import measure_plan
from ditplan.runtime.groups import RankContext
from ditplan.runtime.models.loading import call_arguments, load_pipeline, prompt_embeddings
from ditplan.runtime.native import parallelize
from ditplan.runtime.pipefusion import route as pipe
from ditplan.runtime.pipefusion.route import Transport
from ditplan.runtime.profiling.timing import captured, time_call
from ditplan.runtime.sequence.kernels import attend, usable_kernels
from ditplan.runtime.sequence.peer_ulysses import PeerExchange
from ditplan.runtime.sequence.ulysses import CollectiveExchange, Exchange

CALLS = 5
MOST_GAPS = 12
KINDS = {
    "attention": ("sdpa", "flash", "fmha"),
    "matrix products": ("nvjet", "gemm", "cutlass", "splitk"),
    "exchange": ("push_boxes", "barrier_kernel", "nccl", "memcpy"),
}


@dataclass(frozen=True)
class Drawn:
    """Final latents (N, C, H, W) and pictures (N, H, W, 3) from 0 to 1."""

    latents: torch.Tensor
    pictures: torch.Tensor


def draw(
    context: RankContext,
    plan: ExecutionPlan,
    captions: list[str],
    guidance: float,
    batch: int,
) -> Drawn | None:
    """Draws captions with a plan, each from the noise of its place in the list; rank 0 has them."""
    if "pipeline" not in context.kept:
        spec, weights = find_model("sd3-tiny"), shipped_weights("sd3-tiny")
        context.kept["pipeline"] = load_pipeline(spec, weights, context.device, "float32")
    pipeline: Any = context.kept["pipeline"]
    found: list[torch.Tensor] = []
    with parallelize(pipeline, plan, context):
        if context.rank not in plan.configuration.placement:
            return None
        for start in range(0, len(captions), batch):
            some = captions[start : start + batch]
            noise = [torch.Generator("cpu").manual_seed(start + i) for i in range(len(some))]
            made = pipeline(
                some,
                guidance_scale=guidance,
                num_inference_steps=plan.workload.steps,
                generator=noise,
                output_type="latent",
            )
            found.append(made.images)
    if context.rank:
        return None
    latents = torch.cat(found)
    vae = pipeline.vae
    with torch.no_grad():
        scaled = latents / vae.config.scaling_factor + vae.config.shift_factor
        pictures = torch.cat([vae.decode(part).sample for part in scaled.split(batch)])
    pictures = (pictures / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    return Drawn(latents.cpu(), pictures.cpu())


def attention_us(
    context: RankContext, shape: tuple[int, int, int, int], keys: int
) -> dict[str, float]:
    """Microseconds of one attention (B, H, S, D) over `keys` by each kernel there is."""
    batch, heads, tokens, width = shape
    query, key, value = (
        torch.randn(batch, n, heads, width, device=context.device).bfloat16().transpose(1, 2)
        for n in (tokens, keys, keys)
    )
    return {
        kernel: _us(context, partial(attend, query, key, value, None, kernel))
        for kernel in usable_kernels(context.device, torch.bfloat16, width)
    }


def exchange_us(context: RankContext, shape: tuple[int, int, int, int]) -> dict[str, float]:
    """Microseconds of Ulysses' exchanges of (B, H, S, D) on two ranks, all ways of doing them.

    Also of an MLP's first product, alone and beside the exchange of q, k and v.
    """
    batch, heads, whole, width = shape
    group = context.groups.axis_group(Mesh(ulysses=2), (0, 1), ("ulysses",))
    if group is None:
        raise ValueError("needs two ranks")
    tokens = (whole - whole // 2, whole // 2)
    three = [
        torch.randn(batch, tokens[group.index], heads, width, device=context.device)
        .bfloat16()
        .transpose(1, 2)
        for _ in range(3)
    ]
    pushed = PeerExchange(group, context.device)
    found: dict[str, float] = {}
    ways: dict[str, Exchange] = {"pushed": pushed, "all_to_all": CollectiveExchange(group)}
    for name, way in ways.items():
        out = way.gather_tokens(three, tokens)[0].clone()
        found[f"{name}: q, k, v"] = _us(context, partial(way.gather_tokens, three, tokens))
        back = partial(way.scatter_tokens, out, heads, tokens)
        found[f"{name}: output"] = _us(context, back)
    size = heads * width
    rows = torch.randn(batch * tokens[group.index], size, device=context.device).bfloat16()
    weight = torch.randn(size, 4 * size, device=context.device).bfloat16()
    product = partial(torch.mm, rows, weight)
    found["product"] = _us(context, product)
    for name, way in ways.items():
        beside = partial(way.gather_tokens, three, tokens, product)
        found[f"product beside {name}: q, k, v"] = _us(context, beside)
        beside = partial(way.scatter_tokens, out, heads, tokens, product)
        found[f"product beside {name}: output"] = _us(context, beside)
    gather_kv = partial(pushed.gather_kv, three[1], three[2], tokens)
    found["pushed: keys and values to all"] = _us(context, gather_kv)
    return found


@dataclass(frozen=True)
class WhereTimeGoes:
    """Seconds of a denoising loop on one rank; kernels are named with seconds and number of calls.

    `computing_s` is the time in which a kernel other than an exchange ran. `gaps` are the times in
    which none did, by the kernels around them: what ended, what began, seconds, how often.
    """

    latency_s: float
    computing_s: float
    kinds: dict[str, float]
    kernels: list[tuple[str, float, int]]
    gaps: list[tuple[str, str, float, int]]


def where_time_goes(
    context: RankContext, spec: ModelSpec, plan: ExecutionPlan
) -> WhereTimeGoes | None:
    """Where the time of a plan goes on this rank; None on ranks that take no part."""
    run = measure_plan(context, spec, None, plan)
    pipeline = context.kept["pipeline"]
    with parallelize(pipeline, plan, context):
        if run is None:
            return None
        words = prompt_embeddings(spec, plan.workload, context.device, seed=1)
        arguments = words | call_arguments(spec, plan.workload) | {"output_type": "latent"}
        with torch.no_grad():
            pipeline(**arguments | {"num_inference_steps": 2})
            torch.cuda.synchronize(context.device)
            with profile(activities=[ProfilerActivity.CUDA]) as watched:
                pipeline(**arguments)
                torch.cuda.synchronize(context.device)
    kinds: defaultdict[str, float] = defaultdict(float)
    kernels = []
    for event in watched.key_averages():
        seconds = event.self_device_time_total / 1e6
        kinds[_kind_of(event.key)] += seconds
        kernels.append((event.key, seconds, event.count))
    kernels.sort(key=lambda kernel: -kernel[1])
    computing = [
        (event.time_range.start, event.time_range.end, event.name)
        for event in watched.events() or ()
        if event.device_type == DeviceType.CUDA and _kind_of(event.name) != "exchange"
    ]
    gaps = _gaps(computing)
    between_s = sum(seconds for _, _, seconds, _ in gaps)
    span_s = (max(end for _, end, _ in computing) - min(computing)[0]) / 1e6
    return WhereTimeGoes(
        run.latency_s, span_s - between_s, dict(kinds), kernels[:25], gaps[:MOST_GAPS]
    )


def _gaps(ranges: Iterable[tuple[float, float, str]]) -> list[tuple[str, str, float, int]]:
    """The seconds that no range (from, to, in microseconds, of what) covers, longest first."""
    found: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    reached, last = float("inf"), ""
    for start, end, name in sorted(ranges):
        if start > reached:
            found[last, name].append((start - reached) / 1e6)
        if last == "" or end > reached:
            reached, last = end, name
    gaps = [(*around, sum(seconds), len(seconds)) for around, seconds in found.items()]
    return sorted(gaps, key=lambda gap: -gap[2])


def _kind_of(kernel: str) -> str:
    for kind, marks in KINDS.items():
        if any(mark in kernel.lower() for mark in marks):
            return kind
    return "element-wise and copies"


def _us(context: RankContext, call: Callable[[], Any]) -> float:
    def several() -> None:
        for _ in range(CALLS):
            call()

    several()
    dist.barrier()
    return time_call(captured(several, context.device), context.device).median_s / CALLS * 1e6


def with_transport(
    context: RankContext, spec: ModelSpec, plan: ExecutionPlan, transport: Transport
) -> RankRun | None:
    """A run of a plan whose stages send that way; compiled code is kept from run to run."""
    assert plan.configuration.pipefusion is not None
    with mock.patch.object(pipe, "transport_between", lambda _ends, _context: transport):
        for plans in context.kept.get("prepared plans", {}).values():
            for key, prepared in plans.items():
                made = pipe.make_route(
                    context, plan.mesh, plan.configuration.placement, plan.configuration.pipefusion
                )
                plans[key] = dataclasses.replace(prepared, pipe=made)
        return measure_plan(context, spec, None, plan)
