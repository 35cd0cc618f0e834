"""Times one block of each kind, the rest of the transformer, the scheduler and the VAE.

The functions timed are the very ones that will run: the model's own forward with one rank's share
of the sequence, self-attention over as many keys as the plan would show it.
"""

import inspect
import math
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Self

import torch
from torch import nn

from ditplan.profiles.errors import InputError, PlanWarning
from ditplan.profiles.family import ModelFamily, Split, family_of
from ditplan.profiles.model import AttentionKernel, Mode, ModelSpec, PointRequest, TimePoint
from ditplan.profiles.workload import Dtype, Workload
from ditplan.runtime.blocks import block_runs
from ditplan.runtime.compilation.blocks import CompiledBlocks
from ditplan.runtime.compilation.operators import AttentionOperator
from ditplan.runtime.groups import RankContext
from ditplan.runtime.models.inputs import InputShape, latents_shape, random_inputs
from ditplan.runtime.models.inspection import diffusers_class
from ditplan.runtime.models.loading import DTYPES, random_model
from ditplan.runtime.profiling.synthetic_kv import SyntheticKV
from ditplan.runtime.profiling.timing import Timing, captured, synchronize, time_call
from ditplan.runtime.sequence.hooks import answer_attentions, apply_splits, lift_text_mask
from ditplan.runtime.sequence.kernels import usable_kernels
from ditplan.runtime.takeover import change_arguments, submodule
from ditplan.runtime.weights.loading import empty_model, everything, fill_with_random

SLOWEST_CALL_S = 1.5
DECODE_FLOPS_ON_CPU = 2e11
CANNOT_BE_HAD = (InputError, RuntimeError)
"""What compiling, capturing and kernels raise for what they can't do: torch has none narrower."""


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
            *measure_blocks(context.device, spec, workload.dtype, requests),
            *_profile_scheduler(context.device, spec, workload),
            *_profile_decoder(context.device, spec, workload),
        ]


def measure_blocks(
    device: torch.device, spec: ModelSpec, dtype: Dtype, requests: Sequence[PointRequest]
) -> list[TimePoint]:
    """One block of each kind and what is outside of them, for each request that isn't too slow."""
    family = family_of(spec.transformer_class)
    model = one_block_per_kind(spec, family, device, DTYPES[dtype])
    points: list[TimePoint] = []
    pace = 0.0
    with ShareOfModel(model, spec, family, device, DTYPES[dtype]) as share:
        for request in requests:
            work = _work(spec, request)
            if pace * work > SLOWEST_CALL_S:
                continue
            measured = share.measure(request)
            slowest = max(p.median_s for p in measured if p.part != "attention")
            pace = slowest / work
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
    model: nn.Module = empty_model(diffusers_class(spec.transformer_class), spec.config, dtype)
    firsts = {kind: paths[0] for kind, paths in reversed(block_runs(model, family))}
    for path in family.blocks:
        kept = [p for p in firsts.values() if p.rpartition(".")[0] == path]
        kept.sort(key=lambda p: int(p.rpartition(".")[2]))
        parent, _, name = path.rpartition(".")
        blocks = nn.ModuleList(submodule(model, p) for p in kept)
        setattr(model.get_submodule(parent), name, blocks)
    fill_with_random(model, device, dtype, everything)
    return model


class ShareOfModel:
    """A transformer of one block a kind that runs as on one rank of many; a context manager."""

    def __init__(
        self,
        model: nn.Module,
        spec: ModelSpec,
        family: ModelFamily,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._model, self._spec, self._family = model, spec, family
        self._device, self._dtype = device, dtype
        self._kinds = {paths[0]: kind for kind, paths in block_runs(model, family)}
        self._attentions = [SyntheticKV(declared) for declared in family.self_attentions]
        # one compile for all shapes: each takes far longer than it is worth measuring
        self._compiled = CompiledBlocks(dynamic=True)
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        answers = [
            AttentionOperator(synthetic, interleaved=False) for synthetic in self._attentions
        ]
        answer_attentions(self._model, self._family, answers, self._undo)
        if self._family.long_skips:
            _give_skips(self._model, self._family, self._family.long_skips, self._undo)
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def measure(self, request: PointRequest) -> list[TimePoint]:
        """Each usable attention kernel, and in each mode asked for each kind of block and the rest.

        Blocks attend with the fastest kernel.
        """
        sizes = InputShape.of_picture(
            self._spec,
            request.batch,
            request.text_tokens + request.side_tokens,
            request.height,
            request.width,
            request.frames,
        )
        inputs = random_inputs(
            self._family.inputs_of(self._spec.config),
            sizes,
            self._spec.config,
            self._device,
            self._dtype,
            family=self._family,
        )
        for synthetic in self._attentions:
            synthetic.begin(request)
        with ExitStack() as undo:
            _show_share(self._model, self._family, request, undo)
            calls = self._block_calls(inputs)
            attentions = self._attention_points(request)
            points = list(attentions)
            fastest = min(attentions, key=lambda point: point.median_s, default=None)
            kernel: AttentionKernel = fastest.kernel if fastest else "auto"
            for synthetic in self._attentions:
                synthetic.kernel = kernel
            for mode in request.modes:
                try:
                    points += self._points_in(mode, kernel, request, calls, inputs)
                except CANNOT_BE_HAD as error:
                    if mode == "eager":
                        raise
                    warnings.warn(f"{mode} isn't measured: {error}", PlanWarning, stacklevel=2)
        return points

    def _block_calls(
        self, inputs: dict[str, torch.Tensor]
    ) -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
        """The arguments that each block gets in a forward."""
        calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        with ExitStack() as watching:
            for path in self._kinds:
                block, hook = submodule(self._model, path), _note_call(calls, path)
                watching.callback(block.register_forward_pre_hook(hook, with_kwargs=True).remove)
            self._model(**inputs)
        return calls

    def _attention_points(self, request: PointRequest) -> list[TimePoint]:
        """The widest self-attention alone, by each kernel; on a CPU there is nothing to choose."""
        if self._device.type == "cpu" or not self._attentions:
            return []
        widest = max(self._attentions, key=lambda synthetic: synthetic.size)
        kernels = usable_kernels(self._device, self._dtype, widest.head_dim)
        points = []
        for kernel in kernels:
            widest.kernel = kernel
            try:
                timing = time_call(captured(widest.again, self._device), self._device)
            except CANNOT_BE_HAD as error:
                warnings.warn(
                    f"attention kernel {kernel} isn't measured: {error}", PlanWarning, stacklevel=2
                )
                continue
            points.append(_point("attention", "eager", kernel, request, timing))
        return points

    def _points_in(
        self,
        mode: Mode,
        kernel: AttentionKernel,
        request: PointRequest,
        calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]],
        inputs: dict[str, torch.Tensor],
    ) -> list[TimePoint]:
        """One point for each kind of block and one for the rest of the transformer."""
        with ExitStack() as undo:
            if "compile" in mode:
                self._compiled.apply(self._model, self._family, False, undo)
            times = {}
            for path, (args, kwargs) in calls.items():
                block = submodule(self._model, path)
                times[path] = self._timed(mode, partial(block, *args, **kwargs))
            whole = self._timed(mode, partial(self._model, **inputs))
        points = [
            _point(self._kinds[path], mode, kernel, request, timing)
            for path, timing in times.items()
        ]
        blocks_s = sum(timing.median_s for timing in times.values())
        rest = [max(run - blocks_s, 1e-7) for run in whole.runs]
        host_s = None
        if whole.host_s is not None:
            host_s = max(0.0, whole.host_s - sum(t.host_s or 0.0 for t in times.values()))
        all_keys = {"key_tokens": request.image_tokens + request.text_tokens}
        outside = _point("outside", mode, kernel, request, Timing(rest, host_s))
        return [*points, outside.model_copy(update=all_keys)]

    def _timed(self, mode: Mode, call: Callable[[], Any]) -> Timing:
        if "graph" not in mode:
            return time_call(call, self._device)
        # graphs are launched as one: no time of the host belongs to a part of them
        return Timing(time_call(captured(call, self._device), self._device).runs, None)


def _point(
    part: str, mode: Mode, kernel: AttentionKernel, request: PointRequest, timing: Timing
) -> TimePoint:
    runs = timing.runs
    return TimePoint(
        part=part,
        mode=mode,
        kernel=kernel,
        batch=request.batch,
        image_tokens=request.image_share,
        text_tokens=request.text_share,
        key_tokens=request.key_tokens,
        median_s=timing.median_s,
        p95_s=sorted(runs)[math.ceil(0.95 * len(runs)) - 1],
        host_s=timing.host_s,
        runs=len(runs),
    )


def _give_skips(model: nn.Module, family: ModelFamily, skip: str, undo: ExitStack) -> None:
    """Has blocks that get no long skip, since those before are missing, take their own input."""
    for path in family.blocks:
        for block in submodule(model, path).children():
            change_arguments(block, lambda given: {skip: given[family.carried[0]]} | given, undo)


def _note_call(
    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]], path: str
) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls[path] = (args, kwargs)

    return note


def _show_share(
    model: nn.Module, family: ModelFamily, request: PointRequest, undo: ExitStack
) -> None:
    """Cuts the sequence to what the fullest of `request.ranks` ranks has, and lengthens outputs."""
    shares = {"image": request.image_share, "text": request.text_share}
    whole = {"image": request.image_tokens, "text": request.text_tokens}

    def cut(split: Split, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.narrow(split.dim, 0, shares[split.segment]).contiguous()

    apply_splits(model, family, cut, undo)
    lift_text_mask(model, family, lambda _masks: None, undo)
    for gather in family.gathers:
        missing = sum(whole[segment] - shares[segment] for segment in gather.segments)

        def lengthen(_m: Any, _a: Any, out: Any, dim: int = gather.dim, n: int = missing) -> Any:
            return _lengthened(out, dim, n)

        undo.callback(submodule(model, gather.name).register_forward_hook(lengthen).remove)


def _lengthened(tensor: torch.Tensor, dim: int, more: int) -> torch.Tensor:
    if not more:
        return tensor
    shape = list(tensor.shape)
    shape[dim] = more
    return torch.cat([tensor, tensor.new_zeros(shape)], dim=dim)


def _profile_scheduler(
    device: torch.device, spec: ModelSpec, workload: Workload
) -> list[TimePoint]:
    """The solver's step on the workload's latents, in whole runs, since solvers count steps.

    Nothing for solvers that want to be told of more than a timestep.
    """
    solver = diffusers_class(spec.scheduler_class)
    if "timestep_back" in inspect.signature(solver.step).parameters:
        return []
    latents = _latents(device, spec, workload)
    steps = max(workload.steps, 8)
    runs = []
    for _ in range(3):
        scheduler = solver.from_config(spec.scheduler_config)
        dynamic = {"mu": 1.0} if spec.scheduler_config.get("use_dynamic_shifting") else {}
        scheduler.set_timesteps(steps, device=device, **dynamic)
        synchronize(device)
        start = time.perf_counter()
        for timestep in scheduler.timesteps:
            scheduler.step(latents, timestep, latents, return_dict=False)
        synchronize(device)
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
            "vae_decode", spec, workload, time_call(lambda: decoder.decode(latents), device).runs
        )
    ]


def _latents(device: torch.device, spec: ModelSpec, workload: Workload) -> torch.Tensor:
    sizes = InputShape.of_picture(
        spec,
        workload.batch,
        workload.text_tokens,
        workload.height,
        workload.width,
        workload.frames,
    )
    shape = latents_shape(
        spec.vae_config, sizes.batch, sizes.latent_frames, sizes.latent_height, sizes.latent_width
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
