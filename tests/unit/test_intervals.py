"""90% intervals against what was measured and published, and what makes them wide."""

from collections import defaultdict
from dataclasses import replace

import pytest

from benchmarks.interval_coverage import (
    Seen,
    by_data_sheet,
    coverage,
    published,
    quantile,
    recorded,
)
from ditplan.planner.search.pricing import price_one
from ditplan.planner.task import Task
from ditplan.profiles.catalog import find_cluster, find_model
from ditplan.profiles.mesh import Mesh


@pytest.fixture(scope="module")
def groups() -> dict[str, list[Seen]]:
    """What was measured, by what its prediction came from."""
    found: defaultdict[str, list[Seen]] = defaultdict(list)
    for row in (*published(), *recorded()):
        found[row.group].append(row)
    return found


@pytest.mark.parametrize(
    "group", ["recorded shares", "data sheet", "measured rates", "measured blocks"]
)
def test_nine_of_ten_measurements_lie_in_their_intervals(
    groups: dict[str, list[Seen]], group: str
) -> None:
    assert 0.85 <= coverage(groups[group]) <= 0.95


def test_the_less_is_known_of_devices_the_wider_the_interval() -> None:
    spec, known = find_model("flux-dev"), find_cluster("8xa100-nvlink")
    device = known.devices[0].model_copy(update={"measured": True})
    measured = known.model_copy(
        update={"hosts": (known.hosts[0].model_copy(update={"devices": (device,) * 8}),)}
    )
    task = Task(spec, spec.defaults, known)
    widths = []
    for cluster in (measured, known, by_data_sheet(known)):
        found = price_one(replace(task, cluster=cluster), Mesh(ulysses=2), "eager").prediction
        low_s, high_s = found.interval_s
        assert low_s < found.latency_s < high_s
        widths.append((high_s - low_s) / found.latency_s)
    assert widths == sorted(set(widths))


def test_a_conformal_quantile_is_the_largest_number_where_there_are_few() -> None:
    assert quantile([3.0, 1.0, 2.0], 0.9) == 3.0
    assert quantile(range(1, 100), 0.9) == 90
