"""Predicted against measured: all legal plans of this machine's devices.

    python -m benchmarks.planner_predictions --models sd3@1024 flux-dev@2048 --save runs
    python -m benchmarks.planner_predictions --saved runs

What `tune` measures is measured first, then the plans are run in turns; each line says what was
measured, and what was predicted with the model's blocks measured and without. A model is `NAME`,
`NAME@EDGE` for pictures, or `NAME@EDGExFRAMES`. `--links` makes slower links of the same GPUs.
What `--save` leaves is compared again by `--saved`, without a GPU, with the cost model of the day.
"""

import argparse
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

from ditplan.checking.measured import loop_bytes, measured_task
from ditplan.checking.ordering import in_order
from ditplan.planner.network.topology import Topology
from ditplan.planner.search.pricing import points_to_measure, price_all
from ditplan.planner.search.ranking import PricedCandidate, build_plan
from ditplan.planner.space.approximations import ApproximationPolicy
from ditplan.planner.task import Task
from ditplan.profiles.catalog import find_model
from ditplan.profiles.errors import DitplanError
from ditplan.profiles.measured_plans import MeasuredPlan, MeasuredPlans
from ditplan.profiles.model import Mode, ModelProfile
from ditplan.profiles.workload import Workload
from ditplan.runtime.workers import Workers, room_here

MEASURED = Path(__file__).parent / "measured"
"""What was measured on machines of ours, by `--save`."""

MEASURED_FIRST = 3
"""As many plans as `tune --measure` runs."""

LINKS = {
    "as-is": (),
    "no-p2p": ("NCCL_P2P_DISABLE",),
    "no-p2p-shm": ("NCCL_P2P_DISABLE", "NCCL_SHM_DISABLE"),
}


def workload_of(text: str, steps: int, device: str) -> tuple[str, Workload]:
    """The model's name and the workload that `NAME@EDGExFRAMES` asks for."""
    name, _, size = text.partition("@")
    edge, _, frames = size.partition("x")
    changes: dict[str, object] = {"steps": steps}
    if device == "cpu":
        changes["dtype"] = "float32"
    if edge:
        changes |= {"height": int(edge), "width": int(edge)}
    if frames:
        changes["frames"] = int(frames)
    return name, find_model(name).defaults.model_copy(update=changes)


def with_profile(task: Task, workers: Workers) -> Task:
    """The task with the model's blocks measured at the shapes its plans need."""
    requests = points_to_measure(task)
    begin = time.monotonic()
    profile = workers.profile_model(task.spec, task.workload, requests, task.cluster)
    sys.stderr.write(f"{time.monotonic() - begin:6.1f} s: {len(requests)} shapes of the blocks\n")
    return replace(task, profile=profile)


def plans_to_run(task: Task, settings: int) -> list[PricedCandidate]:
    """All plans that fit, of those with stages the first `settings` of each mesh and mode."""
    ranked, _ = price_all(task, Topology(task.cluster))
    kept, seen = [], dict[tuple[object, ...], int]()
    for one in ranked:
        place = (one.configuration.mesh, one.configuration.mode)
        seen[place] = seen.get(place, 0) + 1
        if not one.too_big and seen[place] <= settings:
            kept.append(one)
    return kept


def measured(
    task: Task, workers: Workers, asked: argparse.Namespace, deadline: float
) -> Iterator[tuple[MeasuredPlan, ...]]:
    """Each plan run once a round, in turn: all so far after each; those that fail, or come too
    late, are said.

    On fresh ranks memory is the plan's alone.
    """
    plans = {
        str(one.configuration): build_plan(
            one, task.spec, task.workload, task.cluster, task.backend, task.text_lengths
        )
        for one in plans_to_run(task, asked.settings)
    }
    found: dict[str, list[tuple[float, int]]] = {}
    for name, plan in list(plans.items()) * asked.rounds:
        if name not in plans:
            continue
        if time.monotonic() > deadline:
            print(f"  time is up before {name}")
            break
        begin = time.monotonic()
        if asked.fresh:
            workers.pool().close()
        try:
            run = workers.measure(task.spec, None, plan)
        except DitplanError as error:
            del plans[name]
            print(f"  {name}: {str(error)[:400]}")
            continue
        found.setdefault(name, []).append((run.latency_s, run.memory_bytes))
        took_s = time.monotonic() - begin
        sys.stderr.write(f"{took_s:6.1f} s: {name}, {run.latency_s:.4f} s\n")
        yield tuple(
            MeasuredPlan(
                configuration=plans[name].configuration,
                latency_s=tuple(seconds for seconds, _ in runs),
                memory_bytes=max(memory for _, memory in runs),
            )
            for name, runs in found.items()
        )


@dataclass(frozen=True)
class Compared:
    """A plan with its measured seconds and bytes, and the seconds predicted without a profile."""

    ranked: PricedCandidate
    computed_s: float
    measured_s: float
    measured_bytes: int | None
    predicted_bytes: int

    @property
    def predicted_s(self) -> float:
        """With the model's blocks measured."""
        return self.ranked.prediction.latency_s

    @property
    def error(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted_s / self.measured_s - 1

    @property
    def guess(self) -> float:
        """Computed over measured, less one."""
        return self.computed_s / self.measured_s - 1

    @property
    def memory_error(self) -> float:
        """Predicted over measured bytes, less one; NaN if they weren't measured."""
        return self.predicted_bytes / self.measured_bytes - 1 if self.measured_bytes else math.nan


def compared(runs: MeasuredPlans) -> list[Compared]:
    """The plans that were run, by what is predicted of them now; such as aren't planned any more
    are left out."""
    task, topology = measured_task(runs), Topology(runs.cluster)
    ranked = {str(one.configuration): one for one in price_all(task, topology)[0]}
    computed = {
        str(one.configuration): one.prediction.latency_s
        for one in price_all(replace(task, profile=None), topology)[0]
    }
    return [
        Compared(
            ranked[run.candidate],
            computed.get(run.candidate, math.nan),
            statistics.median(run.latency_s),
            run.memory_bytes,
            loop_bytes(task, run.configuration),
        )
        for run in runs.runs
        if run.candidate in ranked
    ]


def regret(found: Sequence[Compared], first: int) -> float:
    """How much slower than the best is the best of the `first` plans by prediction."""
    best_s = min(one.measured_s for one in found)
    chosen = sorted(found, key=lambda one: one.predicted_s)[:first]
    return min(one.measured_s for one in chosen) / best_s - 1


def order(found: Sequence[Compared]) -> tuple[int, int]:
    """Of the pairs more than 3% apart, how many are predicted in order; and how many there are."""
    return in_order([(one.measured_s, one.predicted_s) for one in found], 0.03)


def show(runs: MeasuredPlans) -> list[Compared]:
    """A line for each plan, then errors, order and regret."""
    found = compared(runs)
    print(f"{runs.model}: {runs.workload}, links {runs.links}")
    for one in sorted(found, key=lambda one: one.measured_s):
        print(
            f"  {one.ranked.configuration!s:<88} measured {one.measured_s:8.4f} s"
            f"  predicted {one.predicted_s:8.4f} ({100 * one.error:+.0f}%)"
            f"  computed {one.computed_s:8.4f} ({100 * one.guess:+.0f}%)"
            f"  {(one.measured_bytes or math.nan) / 1e9:5.1f} GB, predicted "
            f"{one.predicted_bytes / 1e9:5.1f}"
        )
    say([found])
    return found


def say(models: Sequence[Sequence[Compared]]) -> None:
    """Errors over all models' plans, order within each, and the largest regrets, in a line."""
    every = [one for found in models for one in found]
    error, guess, memory = (
        100 * statistics.median([abs(n) for n in numbers if not math.isnan(n)] or [math.nan])
        for numbers in zip(*((x.error, x.guess, x.memory_error) for x in every), strict=True)
    )
    right, pairs = (sum(counts) for counts in zip(*map(order, models), strict=True))
    first, measured_first = (
        100 * max(regret(found, count) for found in models) for count in (1, MEASURED_FIRST)
    )
    print(
        f"  median error {error:.1f}% (without measured blocks {guess:.1f}%, of memory "
        f"{memory:.1f}%), {right} of {pairs} pairs more than 3% apart in order, regret of the "
        f"first choice {first:.1f}%, of {MEASURED_FIRST} measured {measured_first:.1f}%",
        flush=True,
    )


def graphs(found: Sequence[Compared]) -> list[Compared]:
    """Those that run as graphs: what a plan takes that is launched kernel by kernel varied up to
    twofold on the recorded machines.
    """
    return [one for one in found if "graph" in one.ranked.configuration.mode]


def say_of_graphs(links: str, models: Sequence[Sequence[Compared]]) -> None:
    """Errors of all models' graphs over some links, with blocks measured and without, in a line."""
    every = [one for found in models for one in graphs(found)]
    if not every:
        return
    errors, guesses = (
        [100 * abs(n) for n in numbers if not math.isnan(n)]
        for numbers in zip(*((one.error, one.guess) for one in every), strict=True)
    )
    right, pairs = (sum(n) for n in zip(*(order(graphs(f)) for f in models), strict=True))
    of_memory = [abs(one.memory_error) for one in every if one.measured_bytes]
    print(
        f"graphs, links {links}: median error {statistics.median(errors):.1f}%, at most "
        f"{max(errors):.0f}% (without measured blocks {statistics.median(guesses):.1f}%, at most "
        f"{max(guesses):.0f}%), {right} of {pairs} pairs in order, memory within 10% of "
        f"{sum(error <= 0.1 for error in of_memory)} of {len(of_memory)}, at most "
        f"{100 * max(of_memory, default=math.nan):.0f}%"
    )


@contextmanager
def links_set(links: str) -> Iterator[None]:
    """NCCL's variables that keep ranks from the faster links; ranks take them when they start."""
    for name in LINKS[links]:
        os.environ[name] = "1"
    try:
        yield
    finally:
        for name in LINKS[links]:
            del os.environ[name]


def measure(asked: argparse.Namespace) -> Iterator[MeasuredPlans]:
    """Runs what was asked for; blocks are measured once, they don't depend on the links."""
    deadline, room = time.monotonic() + asked.seconds, room_here()
    profiles: dict[str, ModelProfile] = {}
    modes = tuple(asked.modes) if asked.modes else None
    for links in asked.links:
        with links_set(links), Workers(None, room.ranks, room.device) as workers:
            cluster = workers.profile_cluster(lambda message: None)
            print(
                f"{len(cluster.devices)} x {cluster.devices[0].name}, Python "
                f"{platform.python_version()}, {cluster.software}, {datetime.now(UTC):%Y-%m-%d}, "
                f"links {links}"
            )
            for text in asked.models:
                if time.monotonic() > deadline:
                    print(f"{text}: not started, time is up")
                    continue
                name, workload = workload_of(text, asked.steps, workers.device)
                task = Task(
                    find_model(name), workload, cluster, modes=modes, allowed=ApproximationPolicy()
                )
                known = profiles.get(text)
                task = replace(task, profile=known) if known else with_profile(task, workers)
                assert task.profile is not None
                profiles[text] = task.profile
                runs = MeasuredPlans(
                    model=name,
                    links=links,
                    workload=workload,
                    modes=modes,
                    cluster=cluster,
                    profile=task.profile,
                    runs=(),
                )
                for found in measured(task, workers, asked, deadline):
                    runs = runs.model_copy(update={"runs": found})
                    if asked.save:
                        runs.save(asked.save / runs.file_name)
                yield runs


def main() -> None:
    """Compares the models asked for, or those that were measured before."""
    parser = argparse.ArgumentParser(description="predicted against measured")
    parser.add_argument("--models", nargs="+", metavar="NAME[@EDGE[xFRAMES]]", default=[])
    parser.add_argument("--links", nargs="+", choices=LINKS, default=["as-is"])
    parser.add_argument("--modes", nargs="+", choices=get_args(Mode), help="these alone")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--settings", type=int, default=3, help="of each mesh with stages, the first by prediction"
    )
    parser.add_argument("--fresh", action="store_true", help="new ranks for each run")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after these")
    parser.add_argument(
        "--save", type=Path, metavar="FOLDER", help="keep what was measured, after each run"
    )
    parser.add_argument("--saved", type=Path, metavar="FOLDER", help="compare what was kept")
    asked = parser.parse_args()
    if asked.saved:
        records = [MeasuredPlans.load(path) for path in sorted(asked.saved.glob("*.json"))]
        models = [show(runs) for runs in records]
        print(f"all {sum(map(len, models))} plans")
        say(models)
        for links in LINKS:
            say_of_graphs(
                links,
                [found for runs, found in zip(records, models, strict=True) if runs.links == links],
            )
        return
    if asked.save:
        asked.save.mkdir(parents=True, exist_ok=True)
    for runs in measure(asked):
        if runs.runs:
            show(runs)


if __name__ == "__main__":
    main()
