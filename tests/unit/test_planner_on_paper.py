"""Predictions of models that nothing was measured of against runs on two H100."""

import statistics

from benchmarks.planner_on_paper import ordered_right, rows


def test_models_that_were_only_read_about_are_predicted_within_a_tenth_and_ordered_right() -> None:
    found = rows()
    assert len({row.model for row in found}) == 5
    assert len(found) == 15
    assert statistics.median(abs(row.error) for row in found) <= 0.1
    assert max(abs(row.error) for row in found) <= 0.3
    right, pairs = ordered_right(found)
    assert right >= 0.9 * pairs
