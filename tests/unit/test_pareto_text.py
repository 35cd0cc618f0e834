"""`tune` shows the fastest plan of each number of GPUs that is worth having."""

from dataclasses import replace

from ditplan.command.pareto import BAR, MOST_ROWS, pareto_text
from ditplan.planner.search.search import search
from ditplan.planner.task import Task
from tests.unit.planner_factories import WORKLOAD, a_cluster, sd3_like


def lines_of(devices: int) -> list[str]:
    found = search(Task(sd3_like(), WORKLOAD, a_cluster(devices=devices)))
    return pareto_text(found).splitlines()[1:]


def test_each_line_is_faster_than_those_of_fewer_gpus() -> None:
    lines = lines_of(8)
    gpus = [int(line.split()[0]) for line in lines]
    seconds = [float(line.split()[1]) for line in lines]
    bars = [line.count("#") for line in lines]
    assert gpus == sorted(set(gpus))
    assert gpus[0] == 1
    assert seconds == sorted(seconds, reverse=True)
    assert bars[0] == BAR
    assert bars == sorted(bars, reverse=True)


def test_many_numbers_of_gpus_are_cut_to_the_ends_and_what_saves_most() -> None:
    found = search(Task(sd3_like(), WORKLOAD, a_cluster(hosts=2, devices=8)))
    lines = pareto_text(found).splitlines()[1:]
    assert len(lines) <= MOST_ROWS
    assert int(lines[0].split()[0]) == 1


def test_nothing_is_shown_for_one_number_of_gpus() -> None:
    found = search(Task(sd3_like(), WORKLOAD, a_cluster(devices=2)))
    alone = tuple(one for one in found.ranked if one.configuration.mesh.size == 2)
    assert pareto_text(replace(found, ranked=alone)) == ""
