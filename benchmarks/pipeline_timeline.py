"""The simulator's schedule of PipeFusion against the runtime's own timeline, on two CPU ranks.

    python -m benchmarks.pipeline_timeline --patches 1 2 3 4 8

Each rank writes down when it computes and when it waits. The means of these are the simulated
pipeline's durations; when its last patch comes out is compared with when it really did.
"""

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence

import torch

from benchmarks.engines import WARMUP_STEPS
from benchmarks.stage_events import Event, timeline
from ditplan.planner.pipefusion.schedule import Durations, pipeline_s
from ditplan.profiles.catalog import find_model
from ditplan.profiles.configuration import PipeFusion
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.plan import PlannedModel, bare_plan
from ditplan.runtime.ranks.pool import RankPool


def durations_of(ranks: Sequence[Sequence[Event]], patches: int) -> Durations:
    """The means of what the stages did for each patch.

    What comes before a computation and after what was waited for is the first stage's work between
    two steps, and part of the computation on others; what comes after it, till something is waited
    for, is sending.
    """
    spent = [_spent(rank) for rank in ranks]
    before, compute, after = (
        [[statistics.fmean(of_rank[kind, patch]) for patch in range(patches)] for of_rank in spent]
        for kind in ("before", "compute", "after")
    )
    for stage in range(1, len(ranks)):
        compute[stage] = [sum(pair) for pair in zip(before[stage], compute[stage], strict=True)]
    return Durations(stage_s=compute, hop_s=after, between_s=before[0])


def loop_s(first: Sequence[Event]) -> float:
    """From the first stage's first patch to when it had the last one."""
    start_s = next(event.start_s for event in first if event.what == "compute")
    return next(event.start_s for event in first if event.what == "agree") - start_s


def _spent(events: Sequence[Event]) -> dict[tuple[str, int], list[float]]:
    spent: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
    for before, event, after in zip(events, events[1:], events[2:], strict=False):
        if event.patch is None:
            continue
        spent["compute", event.patch].append(event.seconds)
        if before.what == "wait":
            spent["before", event.patch].append(event.start_s - before.end_s)
        spent["after", event.patch].append(after.start_s - event.end_s)
    return spent


def main() -> None:
    """Prints one line for each number of patches."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patches", type=int, nargs="+", default=[1, 2, 3, 4, 8])
    blocks = find_model("sd3-tiny").block_count
    parser.add_argument(
        "--first",
        type=int,
        choices=range(1, blocks),
        default=blocks // 2,
        help="blocks of the first of two stages",
    )
    asked = parser.parse_args()
    spec = find_model("sd3-tiny")
    stages = (asked.first, spec.block_count - asked.first)
    work = spec.defaults.model_copy(update={"dtype": "float32"})
    sys.stdout.write(
        f"sd3-tiny, stages of {stages[0]} + {stages[1]} blocks, {work.steps} steps, "
        f"torch {torch.__version__}\n"
    )
    sys.stdout.write("patches  recorded s  simulated s  difference\n")
    with RankPool(None, 2, "cpu") as pool:
        for patches in asked.patches:
            part = PipeFusion(blocks_per_stage=stages, patches=patches, warmup_steps=WARMUP_STEPS)
            plan = bare_plan(PlannedModel.of_spec(spec), work, Mesh(pipefusion=2), pipefusion=part)
            ranks = pool.run(timeline, spec, plan, timeout_s=300.0)
            durations, steps = durations_of(ranks, patches), work.steps - WARMUP_STEPS
            simulated_s = pipeline_s(durations, steps, sending_computes=True)
            real_s = loop_s(ranks[0])
            error = simulated_s / real_s - 1
            sys.stdout.write(f"{patches:7d}  {real_s:10.3f}  {simulated_s:11.3f}  {error:+10.1%}\n")


if __name__ == "__main__":
    main()
