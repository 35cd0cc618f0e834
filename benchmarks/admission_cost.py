"""What it costs that ranks agree on a call: SD3 at 1024px, one step, with and without it in turns.

python -m benchmarks.admission_cost [--device cpu]

On CPUs the model has SD3's modules at a tenth of its width, so only the milliseconds mean
something, not their share.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from unittest import mock

import diffusers
import torch

from ditplan.profiles.catalog import find_model
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import ExecutionPlan, PlannedModel, bare_plan
from ditplan.profiles.workload import Workload
from ditplan.runtime.admission import call_guard
from ditplan.runtime.admission.calls import Calls
from ditplan.runtime.groups import RankContext
from ditplan.runtime.models.inspection import inspect_configs
from ditplan.runtime.models.loading import call_arguments, load_pipeline, prompt_embeddings
from ditplan.runtime.native import parallelize
from ditplan.runtime.ranks.pool import RankPool

ROUNDS = 6
CALLS = 5
TIMEOUT_S = 900.0
STEPS = (1, 20)


def main() -> None:
    """Prints the median call with and without, and the parts of what it costs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    device = parser.parse_args().device
    spec, size, dtype = find_model("sd3"), 1024, "bfloat16"
    if device == "cpu":
        spec, size, dtype = _narrow(spec), 128, "float32"
    name = torch.cuda.get_device_name(0) if device == "cuda" else platform.processor() or "CPU"
    now = datetime.now(UTC).isoformat(timespec="minutes")
    sys.stdout.write(
        f"{now}, 2 x {name}, torch {torch.__version__}, diffusers {diffusers.__version__}\n"
    )
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
                planned = PlannedModel.of(
                    spec.name, spec.pipeline_class, spec.transformer_class, spec.config_hash
                )
                plan = bare_plan(planned, work, mesh)
                found = pool.run(calls, spec, plan, timeout_s=TIMEOUT_S)[0]
                _show(f"{spec.name} {size}px, {mesh}, {steps} step(s)", found)


def _narrow(spec: ModelSpec) -> ModelSpec:
    config = spec.config | {"num_attention_heads": 3, "caption_projection_dim": 192}
    config["_class_name"] = spec.transformer_class
    return inspect_configs("narrow-sd3", config, spec.vae_config, spec.scheduler_config, 0)


def _show(what: str, found: dict[str, list[float]]) -> None:
    with_it, without = (statistics.median(found[name]) for name in ("with", "without"))
    share = (with_it - without) / without
    sys.stdout.write(
        f"{what}: {with_it * 1e3:.2f} ms, without {without * 1e3:.2f} ms: "
        f"{(with_it - without) * 1e3:+.2f} ms, {share:+.2%}\n"
    )
    for part in ("begin", "first call", "later calls", "end"):
        if found[part]:
            sys.stdout.write(f"  {part}: {statistics.median(found[part]) * 1e3:.3f} ms\n")


def calls(context: RankContext, spec: ModelSpec, plan: ExecutionPlan) -> dict[str, list[float]]:
    """Seconds of calls with and without agreement, in turns, and of the agreement's parts."""
    pipeline = load_pipeline(spec, None, context.device, plan.workload.dtype)
    words = prompt_embeddings(spec, plan.workload, context.device, seed=1)
    found: dict[str, list[float]] = {
        name: [] for name in ("with", "without", "begin", "first call", "later calls", "end")
    }

    def timed() -> float:
        _wait(context)
        start = time.perf_counter()
        with torch.no_grad():
            pipeline(
                **words,
                **call_arguments(spec, plan.workload),
                generator=torch.Generator("cpu").manual_seed(0),
                output_type="latent",
            )
        _wait(context)
        return time.perf_counter() - start

    for number in range(ROUNDS):
        with parallelize(pipeline, plan, context):
            timed()
            found["with"] += [timed() for _ in range(CALLS)]
            if number == 0:
                with _parts(context, found):
                    for _ in range(CALLS):
                        timed()
        with _without(), parallelize(pipeline, plan, context):
            timed()
            found["without"] += [timed() for _ in range(CALLS)]
    return found


def _wait(context: RankContext) -> None:
    if context.device.type == "cuda":
        torch.cuda.synchronize(context.device)


@contextmanager
def _without() -> Iterator[None]:
    """Plans whose ranks agree on nothing."""
    guard = call_guard.CallGuard
    with (
        mock.patch.object(guard, "run", Calls.run),
        mock.patch.object(guard, "guard", lambda *_: None),
    ):
        yield


@contextmanager
def _parts(context: RankContext, found: dict[str, list[float]]) -> Iterator[None]:
    """Times each meeting, the device's work for it included."""
    guard: Any = call_guard.CallGuard
    own_admit, own_end, own_noise = guard.admit, guard._end, guard._common_noise

    def admit(self: Any, inputs: dict[str, Any]) -> None:
        name = "later calls" if self._call.calls else "first call"
        _timed(found[name], lambda: own_admit(self, inputs))

    def end(self: Any, call: Any) -> None:
        _timed(found["end"], lambda: own_end(self, call))

    @contextmanager
    def noise(self: Any) -> Iterator[None]:
        entered = own_noise(self)
        _timed(found["begin"], entered.__enter__)
        try:
            yield
        finally:
            entered.__exit__(None, None, None)

    def _timed(into: list[float], act: Any) -> None:
        _wait(context)
        start = time.perf_counter()
        act()
        _wait(context)
        into.append(time.perf_counter() - start)

    with (
        mock.patch.object(guard, "admit", admit),
        mock.patch.object(guard, "_end", end),
        mock.patch.object(guard, "_common_noise", noise),
    ):
        yield


if __name__ == "__main__":
    main()
