"""What the benchmark of VAE decoding has ranks do."""

import resource
import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import psutil
import torch
import torch.distributed as dist

from ditplan.profiles.catalog import find_model
from ditplan.profiles.family import pixels_per_latent
from ditplan.runtime.groups import RankContext
from ditplan.runtime.models.inputs import latents_shape
from ditplan.runtime.models.loading import DTYPES, random_model
from ditplan.runtime.profiling.timing import synchronize, time_call
from ditplan.runtime.vae.split_vae import VaeGroups, apply_vae


@dataclass(frozen=True)
class Decoded:
    """Median seconds of a decode, a rank's peak beside its weights, and the largest difference to
    one device's picture where that was computed.
    """

    seconds: float
    peak_bytes: int
    difference: float | None = None


def decode(
    context: RankContext, model: str, pixels: int, dtype: str, degree: int, compares: bool
) -> Decoded | str:
    """Decodes a latent by so many ranks, all there are; "out of memory" where a rank has too little
    before it has begun to talk, which all learn.
    """
    vae, latent = _vae_and_latent(context, model, pixels, dtype)
    groups = VaeGroups.of(context, tuple(range(degree)), degree)
    with torch.no_grad(), ExitStack() as undo:
        whole = vae.decode(latent).sample.cpu() if compares else None
        if degree > 1 and groups is not None:
            apply_vae(vae, groups, undo)
        before = _begin_peak(context.device)
        try:
            picture = vae.decode(latent).sample
        except torch.OutOfMemoryError:
            if degree > 1:
                raise
            return "out of memory"
        peak = _peak(context.device) - before
        away = None if whole is None else float((picture.cpu() - whole).abs().max())
        del picture
        seconds = _rounds(lambda: vae.decode(latent), context.device, degree)
    return Decoded(seconds, peak, away)


def hooks_of_one(context: RankContext, model: str, pixels: int, dtype: str) -> tuple[float, float]:
    """Seconds of diffusers' own decode and of one under the hooks with one rank, in turns."""
    vae, latent = _vae_and_latent(context, model, pixels, dtype)
    groups = VaeGroups.of(context, (0,), 1)
    own, hooked = [], []
    with torch.no_grad():
        for _ in range(5):
            own.append(time_call(lambda: vae.decode(latent), context.device).median_s)
            with ExitStack() as undo:
                if groups is not None:
                    apply_vae(vae, groups, undo)
                hooked.append(time_call(lambda: vae.decode(latent), context.device).median_s)
    return statistics.median(own), statistics.median(hooked)


def _vae_and_latent(
    context: RankContext, model: str, pixels: int, dtype: str
) -> tuple[Any, torch.Tensor]:
    spec = find_model(model)
    vae = random_model(spec.vae_class, spec.vae_config, context.device, DTYPES[dtype])
    edge = pixels // pixels_per_latent(spec.vae_config)
    shape = latents_shape(spec.vae_config, 1, 1, edge, edge)
    latent = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return vae, latent.to(context.device, DTYPES[dtype])


def _rounds(call: Any, device: torch.device, degree: int) -> float:
    """The median of as many calls on all ranks, each begun together."""
    runs = []
    for _ in range(5 if device.type == "cuda" else 2):
        if degree > 1:
            dist.barrier()
        runs.append(_once(call, device))
    return statistics.median(runs)


def _once(call: Any, device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def _begin_peak(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    return int(psutil.Process().memory_info().rss)


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
