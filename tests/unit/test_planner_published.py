"""The cost model against published latencies of xDiT that it wasn't fitted to."""

import statistics

import pytest

from benchmarks.planner_published import (
    best_plans,
    ordered_right,
    predicted_s,
    price,
    published_rows,
)
from ditplan.profiles.mesh import Mesh

CHECKED = [row for row in published_rows() if row.use == "check"]


def test_rows_kept_out_of_the_fit_are_predicted_within_15_percent_and_in_order() -> None:
    found = {row: price(row) for row in CHECKED}
    errors = [abs(seconds / row.latency_s - 1) for row, seconds in found.items()]
    assert statistics.median(errors) <= 0.15
    right, pairs = ordered_right(found)
    assert pairs > 100
    assert right >= 0.9 * pairs


@pytest.mark.parametrize(
    ("pixels", "mesh"),
    [(1024, Mesh(pipefusion=4, ulysses=4)), (4096, Mesh(pipefusion=4, ring=2, ulysses=2))],
)
def test_the_published_best_of_16_l40_is_within_10_percent_of_the_predicted_best(
    pixels: int, mesh: Mesh
) -> None:
    row = next(row for row in CHECKED if row.mesh == mesh and row.workload.height == pixels)
    plans = best_plans(row)
    theirs = next(plan for plan in plans if plan.configuration.mesh == mesh)
    assert predicted_s(row, theirs) <= 1.1 * predicted_s(row, plans[0])


def test_pcie_wants_pipefusion_and_nvlink_ulysses() -> None:
    rows = {(row.cluster, row.workload.height, row.gpus): row for row in published_rows()}
    pcie = best_plans(rows["2x8xl40-pcie-eth100", 1024, 8])
    assert pcie[0].configuration.mesh.pipefusion > 1
    assert best_plans(rows["8xl20-pcie", 1024, 8])[0].configuration.mesh.pipefusion > 1
    assert best_plans(rows["8xa100-nvlink", 2048, 8])[0].configuration.mesh == Mesh(ulysses=8)
