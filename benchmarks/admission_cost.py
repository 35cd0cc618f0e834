"""What it costs that ranks agree on a call: SD3 at 1024px, one step, with and without it in turns.

python -m benchmarks.admission_cost [--device cpu] [--mode graph] [--one-gpu]

On CPUs the model has SD3's modules at a tenth of its width, so only the milliseconds mean
something, not their share. With one GPU its part of the work is timed beside a call on it, and
the meetings of hosts between two processes without a GPU.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any, get_args

import diffusers
import torch

from benchmarks.admission_calls import PAIRS, calls, meetings
from ditplan.profiles.catalog import find_model
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import Mode, ModelSpec
from ditplan.profiles.plan import PlannedModel, bare_plan
from ditplan.profiles.workload import Workload
from ditplan.runtime.admission.digests import arguments_of, digests_of, state_of
from ditplan.runtime.admission.sketches import sketch_of
from ditplan.runtime.admission.weights import WeightsWatch
from ditplan.runtime.models.inspection import inspect_configs
from ditplan.runtime.models.loading import call_arguments, load_pipeline, prompt_embeddings
from ditplan.runtime.ranks.pool import RankPool

TIMEOUT_S = 900.0
STEPS = (1, 20)


def main() -> None:
    """Prints the median call with and without, and the parts of what it costs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--mode", choices=get_args(Mode), default="eager")
    parser.add_argument("--one-gpu", action="store_true")
    given = parser.parse_args()
    device = given.device
    spec, size, dtype = find_model("sd3"), 1024, "bfloat16"
    if device == "cpu":
        spec, size, dtype = _narrow(spec), 128, "float32"
    name = torch.cuda.get_device_name(0) if device == "cuda" else platform.processor() or "CPU"
    now = datetime.now(UTC).isoformat(timespec="minutes")
    sys.stdout.write(
        f"{now}, {name}, torch {torch.__version__}, diffusers {diffusers.__version__}\n"
    )
    if given.one_gpu:
        _show_parts(spec, torch.device("cuda", 0))
        return
    with RankPool(None, 2, device) as pool:
        for mesh in (Mesh(cfg=2), Mesh(ulysses=2)):
            for steps in STEPS:
                work = Workload.model_validate(
                    {
                        "height": size,
                        "width": size,
                        "steps": steps,
                        "passes": 2,
                        "text_tokens": 333,
                        "dtype": dtype,
                    }
                )
                plan = bare_plan(PlannedModel.of_spec(spec), work, mesh).configured(mode=given.mode)
                found = pool.run(calls, spec, plan, timeout_s=TIMEOUT_S)[0]
                _show(f"{spec.name} {size}px, {mesh}, {given.mode}, {steps} step(s)", found)


def _show_parts(spec: ModelSpec, device: torch.device) -> None:
    work = Workload(height=1024, width=1024, steps=1, passes=2, text_tokens=333, dtype="bfloat16")
    pipeline = load_pipeline(spec, None, device, work.dtype)
    words = prompt_embeddings(spec, work, device, seed=1)
    seen: dict[str, Any] = {}

    def note(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        seen.update(kwargs)

    noting = pipeline.transformer.register_forward_pre_hook(note, with_kwargs=True)

    def call(output_type: str) -> None:
        generator = torch.Generator("cpu").manual_seed(0)
        with torch.no_grad():
            pipeline(
                **words,
                **call_arguments(spec, work),
                generator=generator,
                output_type=output_type,
            )

    call("latent")
    noting.remove()
    leaves = [*arguments_of(words), *state_of(pipeline.scheduler), *arguments_of(seen)]
    watch = WeightsWatch([pipeline.transformer], lambda _: False, device)
    timed: dict[str, Callable[[], object]] = {
        "a call, to latents": partial(call, "latent"),
        "a call, to a picture": partial(call, "pt"),
        "digests of what it was given": lambda: digests_of(leaves, device),
        "whether weights have changed": watch.has_changed,
        "a sketch, for each call of the transformer": lambda: sketch_of(seen["hidden_states"]),
        "digests of all weights, once a plan": watch.digests,
    }
    for what, act in timed.items():
        sys.stdout.write(f"{what}: {_median_ms(act, device):.3f} ms\n")
    with RankPool(None, 2, "cpu") as pool:
        meeting = pool.run(meetings, timeout_s=TIMEOUT_S)[0]
    sys.stdout.write(f"a meeting of 2 hosts: {meeting * 1e3:.3f} ms\n")


def _median_ms(act: Callable[[], object], device: torch.device) -> float:
    found = []
    for _ in range(3 + PAIRS):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        act()
        torch.cuda.synchronize(device)
        found.append((time.perf_counter() - start) * 1e3)
    return statistics.median(found[3:])


def _narrow(spec: ModelSpec) -> ModelSpec:
    config = spec.config | {"num_attention_heads": 3, "caption_projection_dim": 192}
    config["_class_name"] = spec.transformer_class
    vae = spec.vae_config | {"_class_name": spec.vae_class}
    scheduler = spec.scheduler_config | {"_class_name": spec.scheduler_class}
    return inspect_configs("narrow-sd3", config, vae, scheduler, 0)


def _show(what: str, found: dict[str, list[float]]) -> None:
    without = statistics.median(found["without"])
    pairs = [one - other for one, other in zip(found["with"], found["without"], strict=True)]
    low, cost, high = statistics.quantiles(pairs, n=4)
    sys.stdout.write(
        f"{what}: without {without * 1e3:.2f} ms, agreement {cost * 1e3:+.2f} ms "
        f"(middle half {low * 1e3:+.2f} to {high * 1e3:+.2f}), {cost / without:+.2%}\n"
    )
    for part in ("begin", "first call", "later calls", "end"):
        if found[part]:
            sys.stdout.write(f"  {part}: {statistics.median(found[part]) * 1e3:.3f} ms\n")


if __name__ == "__main__":
    main()
