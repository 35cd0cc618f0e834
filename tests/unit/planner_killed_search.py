"""A search that a test kills: each run is noted in a file, and after some runs the next one hangs.

Usage: planner_killed_search.py JOURNAL RUNS MOST
"""

import signal
import sys
from pathlib import Path

from ditplan.planner.search.policy import MeasurementPolicy, RunResult
from ditplan.planner.search.search import search
from ditplan.profiles.plan import ExecutionPlan
from tests.unit.test_planner_search import TASK


def main(journal: Path, runs: Path, most: int) -> None:
    """Searches with four candidates and three rounds, of which `most` runs end."""
    ended = 0

    def measure(plan: ExecutionPlan) -> RunResult:
        nonlocal ended
        if ended == most:
            signal.pause()
        with runs.open("a") as file:
            file.write(f"{plan.mesh}\n")
        ended += 1
        return RunResult(1.0 + plan.mesh.ring)

    search(TASK, MeasurementPolicy(measure, top=4, rounds=3, journal=journal))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
