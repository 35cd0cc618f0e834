"""Predicted against measured: all legal plans of this machine's devices.

    python -m benchmarks.planner_predictions --models sd3@1024 flux-dev@2048 --steps 8

What `tune` measures is measured first, then the plans are run in turns; each line says what was
measured, and what was predicted with the model's blocks measured and without. A model is `NAME`,
`NAME@EDGE` for pictures, or `NAME@EDGExFRAMES`. `NCCL_P2P_DISABLE=1`, and `NCCL_SHM_DISABLE=1`
beside it, make slower links of the same GPUs.
"""

import argparse
import itertools
import os
import platform
import statistics
import sys
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from ditplan.planner.allowed import Allowed
from ditplan.planner.memory import memory_of
from ditplan.planner.pricing import Task, price_all, space_of
from ditplan.planner.ranking import Ranked, build_plan
from ditplan.planner.requests import wanted_points
from ditplan.planner.topology import Topology
from ditplan.profiles.catalog import find_model
from ditplan.profiles.errors import DitplanError
from ditplan.profiles.model import ModelSpec
from ditplan.runtime.launch import count_slots
from ditplan.runtime.workers import Workers, device_kind

PATCHES_TRIED = 3
"""Of the settings of a mesh with stages so many are run, the fastest predicted ones."""


@dataclass(frozen=True)
class Compared:
    """A plan with its measured seconds and bytes, and the seconds predicted without a profile."""

    ranked: Ranked
    computed_s: float
    measured_s: float
    memory_bytes: int

    @property
    def error(self) -> float:
        """Predicted over measured, less one."""
        return self.ranked.prediction.latency_s / self.measured_s - 1


def task_for(text: str, steps: int, workers: Workers) -> Task:
    """The task that `NAME@EDGExFRAMES` asks for, on this machine's cluster as measured now."""
    name, _, size = text.partition("@")
    edge, _, frames = size.partition("x")
    spec = find_model(name)
    changes: dict[str, object] = {"steps": steps}
    if workers.device == "cpu":
        changes["dtype"] = "float32"
    if edge:
        changes |= {"height": int(edge), "width": int(edge)}
    if frames:
        changes["frames"] = int(frames)
    workload = spec.defaults.model_copy(update=changes)
    cluster = workers.profile_cluster(lambda message: None)
    return Task(spec, workload, cluster, allowed=Allowed())


def with_profile(task: Task, workers: Workers) -> Task:
    """The task with the model's blocks measured at the shapes its plans need."""
    candidates = space_of(task, Topology(task.cluster)).candidates
    meshes = {candidate.mesh for candidate in candidates}
    patched = {(one.mesh, one.pipefusion.patches) for one in candidates if one.pipefusion}
    requests = wanted_points(task.spec, task.workload, meshes, task.searched_modes, patched)
    profile = workers.profile_model(task.spec, task.workload, requests, task.cluster)
    return replace(task, profile=profile)


def plans_to_run(task: Task) -> list[Ranked]:
    """All plans that fit, of those with stages the first settings of each mesh and mode."""
    ranked, _ = price_all(task, Topology(task.cluster))
    kept, seen = [], dict[tuple[object, ...], int]()
    for one in ranked:
        place = (one.candidate.mesh, one.candidate.mode)
        seen[place] = seen.get(place, 0) + 1
        if not one.too_big and seen[place] <= PATCHES_TRIED:
            kept.append(one)
    return kept


def measured(task: Task, workers: Workers, rounds: int) -> list[Compared]:
    """Each plan run once a round, in turn; those that fail are said and left out."""
    plans = plans_to_run(task)
    computed = {
        str(one.candidate): one.prediction.latency_s
        for one in price_all(replace(task, profile=None), Topology(task.cluster))[0]
    }
    runs: dict[int, list[tuple[float, int]]] = {}
    for _ in range(rounds):
        for number, one in enumerate(plans):
            plan = build_plan(one, task.spec, task.workload, task.cluster, task.backend)
            try:
                run = workers.measure(task.spec, None, plan)
            except DitplanError as error:
                print(f"  {one.candidate}: {str(error)[:200]}")
                continue
            runs.setdefault(number, []).append((run.latency_s, run.memory_bytes))
    return [
        Compared(
            plans[number],
            computed.get(str(plans[number].candidate), float("nan")),
            statistics.median(seconds for seconds, _ in found),
            max(memory for _, memory in found),
        )
        for number, found in runs.items()
    ]


def loop_bytes(spec: ModelSpec, task: Task, ranked: Ranked) -> int:
    """What of the predicted memory a run without text encoders holds in the allocator."""
    device = task.cluster.devices[0]
    memory = memory_of(spec, task.workload, ranked.candidate, device)
    encoders = spec.encoder_parameters * task.workload.dtype_bytes
    held = memory.weights_bytes - encoders + memory.cache_bytes
    return held + memory.activations_bytes + memory.buffers_bytes


def show(task: Task, found: list[Compared]) -> None:
    """A line for each plan, then errors, order and regret."""
    print(f"{task.spec.name}: {task.workload}")
    best_s = min(one.measured_s for one in found)
    for one in found:
        expected = loop_bytes(task.spec, task, one.ranked)
        guess = one.computed_s / one.measured_s - 1
        print(
            f"  {one.ranked.candidate!s:<58} measured {one.measured_s:8.4f} s"
            f"  predicted {one.ranked.prediction.latency_s:8.4f} ({100 * one.error:+.0f}%)"
            f"  computed {one.computed_s:8.4f} ({100 * guess:+.0f}%)"
            f"  {one.memory_bytes / 1e9:5.1f} GB, predicted {expected / 1e9:5.1f}"
        )
    errors = [abs(one.error) for one in found]
    guesses = [abs(one.computed_s / one.measured_s - 1) for one in found]
    right = pairs = 0
    for one, other in itertools.combinations(found, 2):
        faster, slower = sorted((one, other), key=lambda item: item.measured_s)
        if slower.measured_s > 1.03 * faster.measured_s:
            pairs += 1
            faster_s, slower_s = (x.ranked.prediction.latency_s for x in (faster, slower))
            right += faster_s < slower_s
    first = min(found, key=lambda item: item.ranked.prediction.latency_s)
    print(
        f"  median error {100 * statistics.median(errors):.1f}% (without measured blocks "
        f"{100 * statistics.median(guesses):.1f}%), {right} of {pairs} pairs more than 3% apart in "
        f"order, regret of the first choice {100 * (first.measured_s / best_s - 1):.1f}%",
        flush=True,
    )


def main() -> None:
    """Compares the models asked for."""
    parser = argparse.ArgumentParser(description="predicted against measured")
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME[@EDGE[xFRAMES]]")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1e9, help="start no model after these")
    asked = parser.parse_args()
    started, kind = time.monotonic(), device_kind()
    slower = ("NCCL_P2P_DISABLE", "NCCL_SHM_DISABLE")
    links = "".join(f"{name}={os.environ[name]} " for name in slower if name in os.environ)
    with Workers(None, count_slots(None, kind), kind) as workers:
        for text in asked.models:
            if time.monotonic() - started > asked.seconds:
                print(f"{text}: not started, time is up")
                continue
            task = task_for(text, asked.steps, workers)
            if text == asked.models[0]:
                names = [device.name for device in task.cluster.devices]
                print(
                    f"{len(names)} x {names[0]}, Python {platform.python_version()}, "
                    f"{task.cluster.software}, {datetime.now(UTC):%Y-%m-%d}, {links}"
                    f"python -m benchmarks.planner_predictions {' '.join(sys.argv[1:])}"
                )
            task = with_profile(task, workers)
            show(task, measured(task, workers, asked.rounds))


if __name__ == "__main__":
    main()
