"""A search that a test kills: each run is noted in a file, and takes its time.

Usage: planner_killed_search.py JOURNAL RUNS SECONDS
"""

import sys
import time
from pathlib import Path

from ditplan.planner.search.search import MeasurementPolicy, RunResult, search
from ditplan.profiles.plan import ExecutionPlan
from tests.unit.test_planner_search import TASK


def main(journal: Path, runs: Path, seconds: float) -> None:
    """Searches with four candidates and three rounds."""

    def measure(plan: ExecutionPlan) -> RunResult:
        time.sleep(seconds)
        with runs.open("a") as file:
            file.write(f"{plan.mesh}\n")
        return RunResult(1.0 + plan.mesh.ring)

    search(TASK, MeasurementPolicy(measure, top=4, rounds=3, journal=journal))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
