"""The cost model against loops that were timed on two H100, with the blocks measured there."""

import statistics

import pytest

from benchmarks.planner_predictions import MEASURED, Runs, compared, order, regret

RECORDED = sorted((MEASURED / "two-h100").glob("*.json"))


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_graphs_are_predicted_within_8_percent_and_in_order(path: object) -> None:
    found = [one for one in compared(Runs.load(str(path))) if "graph" in one.ranked.candidate.mode]
    assert len(found) >= 3
    assert statistics.median(abs(one.error) for one in found) <= 0.04
    assert max(abs(one.error) for one in found) <= 0.08
    right, pairs = order(found)
    assert right >= pairs - 1


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_the_best_of_three_measured_plans_is_the_best_of_all(path: object) -> None:
    assert regret(compared(Runs.load(str(path))), 3) <= 0.02
