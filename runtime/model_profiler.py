"""Times one block of each kind, the rest of the transformer, the scheduler and the VAE.

The functions timed are the very ones that will run: the model's own forward with one rank's share
of the sequence, self-attention over as many keys as the plan would show it.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn

from ditplan.profiles.family import ModelFamily, SelfAttention, family_of
from ditplan.profiles.model import ModelSpec, PointRequest, TimePoint
from ditplan.profiles.workload import Dtype, Workload
from ditplan.runtime.attention import attend
from ditplan.runtime.groups import RankContext
from ditplan.runtime.inspection import InputShape, block_runs, diffusers_class, random_inputs
from ditplan.runtime.pipelines import DTYPES, random_model
from ditplan.runtime.sequence import Answer, answer_attention, matching_modules, submodule

SLOWEST_CALL_S = 1.5
TIME_FOR_A_PART_S = 0.25
DECODE_FLOPS_ON_CPU = 2e11


def profile_model(
    context: RankContext,
    spec: ModelSpec,
    workload: Workload,
    requests: Sequence[PointRequest],
) -> list[TimePoint]:
    """Measures the requests, cheapest first, and the workload's scheduler step and VAE decoding.

    What would take too long on this device is left out, for the planner to compute. Random weights.
    Every rank calls this at the same time, so that shared power and memory bandwidth count.
    """
    with torch.no_grad():
        return [
            *_profile_blocks(context.device, spec, workload.dtype, requests),
            *_profile_scheduler(context.device, spec, workload),
            *_profile_decoder(context.device, spec, workload),
        ]


def slowest_of_ranks(points: Sequence[Sequence[TimePoint]]) -> tuple[TimePoint, ...]:
    """Of each point that every rank measured, the slowest rank's."""
    by_rank = [{_shape_of(point): point for point in of_rank} for of_rank in points]
    everywhere = [shape for shape in by_rank[0] if all(shape in known for known in by_rank)]
    return tuple(
        max((known[shape] for known in by_rank), key=lambda point: point.median_s)
        for shape in everywhere
    )


def _shape_of(point: TimePoint) -> tuple[Any, ...]:
    return tuple(point.model_dump(exclude={"median_s", "p95_s", "runs"}).values())


def _profile_blocks(
    device: torch.device, spec: ModelSpec, dtype: Dtype, requests: Sequence[PointRequest]
) -> list[TimePoint]:
    family = family_of(spec.transformer_class)
    model = one_block_per_kind(spec, family, device, DTYPES[dtype])
    points: list[TimePoint] = []
    pace = 0.0
    for request in requests:
        work = _work(spec, request)
        if pace * work > SLOWEST_CALL_S:
            continue
        measured = _measure(model, spec, family, device, dtype, request)
        pace = max(point.median_s for point in measured) / work
        points += measured
    return points


def _work(spec: ModelSpec, request: PointRequest) -> float:
    """FLOPs of the largest block, to foresee how long a request takes."""
    image, text = request.image_share, request.text_share
    return request.batch * max(
        run.image_flops * image
        + run.text_flops * text
        + sum(4 * a.heads * a.head_dim for a in run.attentions)
        * (image + text)
        * request.key_tokens
        for run in spec.blocks
    )


def one_block_per_kind(
    spec: ModelSpec, family: ModelFamily, device: torch.device, dtype: torch.dtype
) -> nn.Module:
    """The transformer with one block of each kind and random weights; no other is ever made."""
    with torch.device("meta"):
        model: nn.Module = diffusers_class(spec.transformer_class).from_config(spec.config)
    firsts = {kind: paths[0] for kind, paths in reversed(block_runs(model, family))}
    for path in family.blocks:
        kept = [p for p in firsts.values() if p.rpartition(".")[0] == path]
        kept.sort(key=lambda p: int(p.rpartition(".")[2]))
        parent, _, name = path.rpartition(".")
        blocks = nn.ModuleList(submodule(model, p) for p in kept)
        setattr(model.get_submodule(parent), name, blocks)
    # diffusers' own `to` advises against casting weights that were loaded; these are random
    model = nn.Module.to(model.to_empty(device=device), dtype).eval()
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.normal_(0, 0.02)
    return model


def _measure(
    model: nn.Module,
    spec: ModelSpec,
    family: ModelFamily,
    device: torch.device,
    dtype: Dtype,
    request: PointRequest,
) -> list[TimePoint]:
    """One point for each kind of block and one for the rest of the transformer."""
    edge = spec.pixels_per_token // int(spec.config["patch_size"])
    sizes = InputShape(
        request.batch, request.text_tokens, request.height // edge, request.width // edge
    )
    inputs = random_inputs(family.inputs, sizes, spec.config, device, DTYPES[dtype])
    kinds = {paths[0]: kind for kind, paths in block_runs(model, family)}
    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    with ExitStack() as undo:
        _show_share(model, family, request, undo)
        with ExitStack() as watching:
            for path in kinds:
                hook = _note_call(calls, path)
                block = submodule(model, path)
                watching.callback(block.register_forward_pre_hook(hook, with_kwargs=True).remove)
            model(**inputs)
        times = {}
        for path, (args, kwargs) in calls.items():
            block = submodule(model, path)
            times[path] = _timings(partial(block, *args, **kwargs), device)
        whole = _timings(lambda: model(**inputs), device)
    blocks_s = sum(statistics.median(runs) for runs in times.values())
    rest = [max(run - blocks_s, 1e-7) for run in whole]
    return [
        _point(part, request, runs, share_of_keys=True)
        for part, runs in ((kinds[path], runs) for path, runs in times.items())
    ] + [_point("outside", request, rest, share_of_keys=False)]


def _point(part: str, request: PointRequest, runs: list[float], share_of_keys: bool) -> TimePoint:
    whole = request.image_tokens + request.text_tokens
    return TimePoint(
        part=part,
        batch=request.batch,
        image_tokens=request.image_share,
        text_tokens=request.text_share,
        key_tokens=request.key_tokens if share_of_keys else whole,
        median_s=statistics.median(runs),
        p95_s=sorted(runs)[math.ceil(0.95 * len(runs)) - 1],
        runs=len(runs),
    )


def _note_call(
    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]], path: str
) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls[path] = (args, kwargs)

    return note


def _show_share(
    model: nn.Module, family: ModelFamily, request: PointRequest, undo: ExitStack
) -> None:
    """Makes the model run as on one of `request.ranks` ranks, with made-up keys of the others."""
    shares = {"image": request.image_share, "text": request.text_share}
    whole = {"image": request.image_tokens, "text": request.text_tokens}
    for split in family.splits:
        if split.place == "output":
            dim, size = split.dim, shares[split.segment]
            undo.callback(
                submodule(model, split.name)
                .register_forward_hook(
                    lambda _m, _a, out, dim=dim, size=size: out.narrow(dim, 0, size).contiguous()
                )
                .remove
            )
    for gather in family.gathers:
        dim, missing = gather.dim, whole[gather.segment] - shares[gather.segment]
        undo.callback(
            submodule(model, gather.name)
            .register_forward_hook(
                lambda _m, _a, out, dim=dim, missing=missing: _lengthened(out, dim, missing)
            )
            .remove
        )
    for declared in family.self_attentions:
        for name, module in matching_modules(model, declared.modules):
            answer_attention(module, name, _with_more_keys(declared, request, shares), undo)


def _lengthened(tensor: torch.Tensor, dim: int, more: int) -> torch.Tensor:
    if not more:
        return tensor
    shape = list(tensor.shape)
    shape[dim] = more
    return torch.cat([tensor, tensor.new_zeros(shape)], dim=dim)


def _with_more_keys(
    declared: SelfAttention, request: PointRequest, shares: dict[str, int]
) -> Answer:
    keys = round(sum(shares[segment] for segment in declared.segments) * request.key_share)
    made: dict[int, torch.Tensor] = {}

    def answer(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None
    ) -> torch.Tensor:
        if keys == key.shape[2]:
            return attend(query, key, value, scale)
        if not made:
            made[0] = torch.randn(
                (*key.shape[:2], keys, key.shape[3]), device=key.device, dtype=key.dtype
            )
        return attend(query, made[0], made[0], scale)

    return answer


def _timings(call: Callable[[], Any], device: torch.device) -> list[float]:
    """Seconds of one call, several times; short ones as the mean of calls in a row."""
    call()
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    once = time.perf_counter() - start
    rounds = max(3, min(15, round(TIME_FOR_A_PART_S / max(once, 1e-6))))
    calls = max(1, min(20, round(TIME_FOR_A_PART_S / rounds / max(once, 1e-6))))
    timings = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        _wait(device)
        timings.append((time.perf_counter() - start) / calls)
    return timings


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _profile_scheduler(
    device: torch.device, spec: ModelSpec, workload: Workload
) -> list[TimePoint]:
    """The solver's step on the workload's latents, in whole runs, since solvers count steps."""
    latents = _latents(device, spec, workload)
    steps = max(workload.steps, 8)
    runs = []
    for _ in range(3):
        scheduler = diffusers_class(spec.scheduler_class).from_config(spec.scheduler_config)
        dynamic = {"mu": 1.0} if spec.scheduler_config.get("use_dynamic_shifting") else {}
        scheduler.set_timesteps(steps, device=device, **dynamic)
        _wait(device)
        start = time.perf_counter()
        for timestep in scheduler.timesteps:
            scheduler.step(latents, timestep, latents, return_dict=False)
        _wait(device)
        runs.append((time.perf_counter() - start) / steps)
    return [_plain_point("scheduler_step", spec, workload, runs)]


def _profile_decoder(device: torch.device, spec: ModelSpec, workload: Workload) -> list[TimePoint]:
    pixels = workload.batch * workload.height * workload.width * workload.frames
    if device.type == "cpu" and spec.vae_flops_per_pixel * pixels > DECODE_FLOPS_ON_CPU:
        return []
    decoder = random_model(spec.vae_class, spec.vae_config, device, DTYPES[workload.dtype])
    latents = _latents(device, spec, workload)
    return [
        _plain_point(
            "vae_decode", spec, workload, _timings(lambda: decoder.decode(latents), device)
        )
    ]


def _latents(device: torch.device, spec: ModelSpec, workload: Workload) -> torch.Tensor:
    edge = spec.pixels_per_token // int(spec.config["patch_size"])
    shape = (
        workload.batch,
        int(spec.vae_config["latent_channels"]),
        workload.height // edge,
        workload.width // edge,
    )
    return torch.randn(shape, device=device, dtype=DTYPES[workload.dtype])


def _plain_point(part: str, spec: ModelSpec, workload: Workload, runs: list[float]) -> TimePoint:
    return TimePoint(
        part=part,
        batch=workload.batch,
        image_tokens=spec.image_tokens(workload),
        text_tokens=0,
        key_tokens=0,
        median_s=statistics.median(runs),
        p95_s=max(runs),
        runs=len(runs),
    )
