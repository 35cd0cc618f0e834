"""What ranks do with a plan: time its denoising loop, or make a picture with it."""

import contextlib
import gc
import hashlib
import io
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from PIL import Image

from ditplan.profiles.backends import find_backend, require_supported
from ditplan.profiles.family import family_of
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import ExecutionPlan
from ditplan.profiles.rank_run import RankRun
from ditplan.profiles.workload import Workload
from ditplan.runtime.admission.fit import require_fit
from ditplan.runtime.blocks import block_paths
from ditplan.runtime.compilation.kept_code import kept_code
from ditplan.runtime.groups import RankContext
from ditplan.runtime.models.loading import (
    call_arguments,
    load_pipeline,
    pictures_of,
    prompt_embeddings,
)
from ditplan.runtime.on_backend import prepare
from ditplan.runtime.prepared import weight_group_of
from ditplan.runtime.profiling.denoising_clock import DenoisingClock
from ditplan.runtime.profiling.phases import PhaseRecorder, require_recordable

WARMUP_STEPS = 2


def measure_plan(
    context: RankContext, spec: ModelSpec, weights: Path | None, plan: ExecutionPlan
) -> RankRun | None:
    """Times one denoising loop of the plan with random prompt embeddings.

    None on ranks that the plan doesn't use. The pipeline is loaded once in a process, and a plan's
    first run is preceded by a short one that isn't counted, where it compiles and captures.

    Raises:
        InputError: the plan doesn't fit model or ranks.
    """
    workload = plan.workload
    require_supported(find_backend(plan.backend), plan.configuration, spec, plan.workload)
    loaded = _kept_pipeline(context, spec, weights, plan)
    with _in_force(loaded, plan, context) as pipeline:
        if context.rank not in plan.configuration.placement:
            return None
        embeddings = prompt_embeddings(spec, workload, context.device, seed=1)
        warm = context.kept.setdefault("warm plans", set())
        key = (plan.configuration, workload)
        # graphs are gone when their plan isn't in force; compiled code and loaded kernels stay
        if key not in warm or "graph" in plan.configuration.mode:
            with kept_code(plan, context):
                _call(pipeline, spec, workload, embeddings, "latent", 0, _warmup_steps(plan))
            warm.add(key)
        run = _timed(context, pipeline, spec, workload, embeddings, "latent", 0)[0]
        unused = _bytes_of_other_blocks(loaded, plan.blocks_of(context.rank))
        return run.model_copy(update={"memory_bytes": run.memory_bytes - unused})


def generate(
    context: RankContext,
    spec: ModelSpec,
    weights: Path | None,
    plan: ExecutionPlan,
    prompt: str,
    seed: int,
    suffix: str,
    records: bool = False,
) -> tuple[RankRun, list[bytes]] | None:
    """Makes the prompt's pictures with the plan. Its first rank decodes them, or all do where they
    share the VAE; the first gives what files of such a `suffix` hold: the file system that they are
    for may be another host's.

    None on ranks that the plan doesn't use. Without weights there are no text encoders:
    embeddings derived from the prompt take their place. With `records` the loop is run once more
    and its phases are recorded: recording takes time, so it isn't the run that is timed.

    Raises:
        InputError: the plan doesn't fit model, ranks, devices or links, or its phases can't be
            recorded.
    """
    require_fit(plan, context)
    if records:
        require_recordable(plan, context.device)
    workload = plan.workload
    require_supported(find_backend(plan.backend), plan.configuration, spec, plan.workload)
    loaded = _kept_pipeline(context, spec, weights, plan)
    with _in_force(loaded, plan, context) as pipeline:
        if context.rank not in plan.configuration.placement:
            return None
        words = words_of_prompt(prompt, workload)
        if weights is None:
            digest = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:6], "little")
            words = prompt_embeddings(spec, workload, context.device, seed=digest)
        first = context.rank == plan.configuration.placement[0]
        with kept_code(plan, context):
            _call(pipeline, spec, workload, words, "latent", seed, _warmup_steps(plan))
        decodes = first or plan.configuration.vae_parallel > 1
        run, images = _timed(
            context, pipeline, spec, workload, words, "pil" if decodes else "latent", seed
        )
        if records:
            recorder = PhaseRecorder(context.rank)
            with recorder.watching(pipeline):
                _call(pipeline, spec, workload, words, "latent", seed, workload.steps)
            run = run.model_copy(update={"phases": recorder.phases()})
    return run, encoded(images, suffix, frame_rate(spec)) if first else []


@contextlib.contextmanager
def _in_force(pipeline: Any, plan: ExecutionPlan, context: RankContext) -> Iterator[Any]:
    """The pipeline to call under a plan; afterwards the one that was given is as it was."""
    prepared = prepare(pipeline, plan, context)
    with contextlib.closing(prepared):
        yield prepared.pipeline


def words_of_prompt(prompt: str, workload: Workload) -> dict[str, Any]:
    """A prompt for each picture, and an empty one to be guided away from: without it Qwen-Image's
    pipeline makes one pass a step, whatever the guidance scale.
    """
    words = {"prompt": [prompt] * workload.batch}
    return words | ({"negative_prompt": [""] * workload.batch} if workload.guidance else {})


def encoded(images: list[Any], suffix: str, frames_per_s: float | None = None) -> list[bytes]:
    """What files of a batch of PIL pictures hold; `suffix` says of which kind.

    A video, which is a list of them, becomes an animated picture of that frame rate, again and
    again.
    """
    files = []
    for image in images:
        first, *rest = image if isinstance(image, list) else [image]
        more: dict[str, Any] = {}
        if rest:
            assert frames_per_s is not None, "pictures of a video without its frame rate"
            times = frame_times_ms(len(rest) + 1, frames_per_s)
            more = {"save_all": True, "append_images": rest, "duration": times, "loop": 0}
        file = io.BytesIO()
        first.save(file, format=Image.registered_extensions()[suffix.lower()], **more)
        files.append(file.getvalue())
    return files


def frame_times_ms(frames: int, frames_per_s: float) -> list[int]:
    """How long each frame is shown, in whole milliseconds that don't drift from the rate."""
    ends = [round(1000 * number / frames_per_s) for number in range(frames + 1)]
    return [end - start for start, end in itertools.pairwise(ends)]


def frame_rate(spec: ModelSpec) -> float | None:
    """The frames a second that a model's videos are made for; None for a model of pictures."""
    return family_of(spec.transformer_class).usual_of(spec.config).frames_per_s


def _warmup_steps(plan: ExecutionPlan) -> int:
    """So many that all is computed once that compiles or is captured: with patches, those too."""
    of_patches = plan.configuration.pipefusion.warmup_steps if plan.configuration.pipefusion else 0
    return min(of_patches + WARMUP_STEPS, plan.workload.steps)


def _kept_pipeline(
    context: RankContext, spec: ModelSpec, weights: Path | None, plan: ExecutionPlan
) -> Any:
    """The pipeline this process loaded before, or loads now; one at a time, they are large.

    One that was loaded whole serves plans with stages as well. Only backends that say so are given
    one of which a rank has loaded its part alone.
    """
    takes_parts = find_backend(plan.backend).capabilities.loads_parts
    blocks = plan.blocks_of(context.rank) if takes_parts else None
    weight_group = weight_group_of(plan, context) if takes_parts else None
    key = (spec.config_hash, weights, plan.workload.dtype, weight_group and weight_group.ranks)
    if context.kept.get("pipeline key") not in ((*key, None), (*key, blocks)):
        if context.kept.pop("pipeline", None) is not None:
            # modules and their hooks refer to each other, so they don't go by themselves
            gc.collect()
        context.kept["pipeline"] = load_pipeline(
            spec, weights, context.device, plan.workload.dtype, blocks, weight_group
        )
        context.kept["pipeline key"] = (*key, blocks)
    return context.kept["pipeline"]


def _bytes_of_other_blocks(pipeline: Any, held: tuple[int, ...] | None) -> int:
    """What blocks occupy that a rank wouldn't have if the pipeline had been loaded for its plan."""
    if held is None:
        return 0
    model = pipeline.transformer
    paths = block_paths(model, family_of(type(model).__name__))
    others = [path for number, path in enumerate(paths) if number not in held]
    return sum(
        parameter.nbytes
        for path in others
        for parameter in model.get_submodule(path).parameters()
        if not parameter.is_meta
    )


def _timed(
    context: RankContext,
    pipeline: Any,
    spec: ModelSpec,
    workload: Workload,
    words: dict[str, Any],
    output_type: str,
    seed: int,
) -> tuple[RankRun, Any]:
    on_gpu = context.device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(context.device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(context.device)
    clock = DenoisingClock(context.device)
    start = time.perf_counter()
    with clock.watching(pipeline):
        images = _call(pipeline, spec, workload, words, output_type, seed, workload.steps)
    latency_s = clock.seconds()
    if on_gpu:
        torch.cuda.synchronize(context.device)
        # reserved, not allocated: a graph keeps what it works in between its replays
        peak = torch.cuda.max_memory_reserved(context.device)
    else:
        peak = psutil.Process().memory_info().rss
    end_to_end_s = time.perf_counter() - start
    return RankRun(latency_s=latency_s, end_to_end_s=end_to_end_s, memory_bytes=peak), images


def _call(
    pipeline: Any,
    spec: ModelSpec,
    workload: Workload,
    words: dict[str, Any],
    output_type: str,
    seed: int,
    steps: int,
) -> Any:
    with torch.no_grad():
        result = pipeline(
            **words,
            **call_arguments(spec, workload.model_copy(update={"steps": steps})),
            generator=torch.Generator("cpu").manual_seed(seed),
            output_type=output_type,
        )
    return pictures_of(result)
