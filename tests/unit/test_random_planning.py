"""Random planning cases: the best plan against all legal ones, and what must hold for any task."""

import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from ditplan.planner.network.topology import Topology
from ditplan.planner.report import tune_json
from ditplan.planner.search.pricing import cost_model_of
from ditplan.planner.search.ranking import PREDICTED_LEAD
from ditplan.planner.search.search import search
from ditplan.planner.space.approximations import ApproximationPolicy
from ditplan.planner.space.enumerate import evenly_staged, patching_violation, why_illegal
from ditplan.planner.task import Task
from ditplan.profiles.cluster import ClusterProfile
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.mesh import AXES, Mesh, axis_orders, placement_of
from ditplan.profiles.model import Mode
from tests.unit.planner_factories import WORKLOAD, a_cluster, a_device, sd3_like

CASES = 300
AT_ONCE = 30
"""So many cases are one test, which says the number of the case that fails."""

MODES: tuple[Mode, ...] = ("eager", "compile", "graph")


def a_case(number: int) -> Task:
    """A model's workload on a small cluster; two of three cases are exact."""
    chance = random.Random(number)
    hosts = chance.choice((1, 1, 2))
    count = chance.choice((1, 2)) if hosts == 2 else chance.choice((2, 3, 4))
    device = a_device().model_copy(
        update={
            "half_flops_per_s": 10 ** chance.uniform(13, 15),
            "memory_bytes_per_s": 10 ** chance.uniform(11.5, 12.7),
        }
    )
    cluster = a_cluster(
        hosts=hosts,
        devices=count,
        inside_bytes_per_s=10 ** chance.uniform(9, 11.7),
        between_bytes_per_s=10 ** chance.uniform(8.5, 10.5),
        device=device,
        inside_kind=chance.choice(("nvlink", "pcie")),
    )
    edge = 64 * chance.randint(4, 20)
    workload = WORKLOAD.model_copy(
        update={
            "height": edge,
            "width": 64 * chance.randint(4, 20),
            "steps": chance.randint(2, 30),
            "passes": chance.choice((1, 2)),
            "batch": chance.choice((1, 1, 2)),
        }
    )
    return Task(
        sd3_like(),
        workload,
        cluster,
        modes=(chance.choice(MODES),),
        allowed=ApproximationPolicy() if number % 3 == 0 else None,
    )


def all_legal(task: Task) -> Iterator[Configuration]:
    """All legal meshes in all orders with all settings, found by trying all degrees."""
    gpus, spec, workload = len(task.cluster.devices), task.spec, task.workload
    (mode,) = task.searched_modes
    for degrees in itertools.product(range(1, gpus + 1), repeat=len(AXES)):
        mesh = Mesh(**dict(zip(AXES, degrees, strict=True)))
        approximate = task.allowed is not None
        if mesh.size > gpus or why_illegal(
            mesh, spec, workload, None, task.backend, approximate=approximate
        ):
            continue
        settings = task.allowed.settings(mesh.pipefusion) if task.allowed else ((1, 1),)
        for order in axis_orders(mesh):
            plain = Configuration(mesh, placement_of(mesh, order), mode, order)
            if mesh.pipefusion == 1:
                yield plain
                continue
            for patches, warmup in settings:
                if not patching_violation(mesh, spec, workload, patches, warmup):
                    part = evenly_staged(mesh, spec, patches, warmup)
                    yield replace(plain, pipefusion=part)


def least_s(task: Task) -> float:
    """What the best of all legal plans is weighed by: its latency, or longer where its error isn't
    known.
    """
    model = cost_model_of(task, Topology(task.cluster))
    found = []
    for candidate in all_legal(task):
        one = model.balanced(candidate, task.workload)
        one = replace(
            one,
            attention=model.attention_kernel(one, task.workload),
            ring=model.ring_variant(one),
        )
        lead = PREDICTED_LEAD if one.pipefusion else 1.0
        found.append(lead * model.price(one, task.workload).latency_s)
    return min(found)


def with_faster_links(cluster: ClusterProfile, kind: str) -> ClusterProfile:
    """The cluster with twice the rate on links of one kind."""
    links = tuple(
        link.model_copy(update={"bytes_per_s": 2 * link.bytes_per_s}) if link.kind == kind else link
        for link in cluster.links
    )
    return cluster.model_copy(update={"links": links})


def said(task: Task) -> str:
    """All that planning says, but for how long it took."""
    answer = tune_json(found := search(task))
    del answer["search_s"]
    return json.dumps(answer) + found.to_plan().model_dump_json()


def check(task: Task) -> None:
    """What must hold of any task's answer."""
    found = search(task)
    best = found.best
    assert best.weighed_s == pytest.approx(least_s(task), rel=1e-6), "not the least of all"
    for one in found.ranked:
        prediction = one.prediction
        assert sum(prediction.parts.values()) == pytest.approx(prediction.latency_s, rel=1e-9)
        assert all(seconds >= 0 for seconds in prediction.parts.values())
    gpus = len(task.cluster.devices)
    fewer = search(replace(task, gpus=gpus - 1)).best if gpus > 1 else best
    assert best.weighed_s <= fewer.weighed_s * (1 + 1e-6), "more GPUs are slower"
    for kind in task.cluster.link_kinds:
        faster = search(replace(task, cluster=with_faster_links(task.cluster, kind))).best
        assert faster.weighed_s <= best.weighed_s * (1 + 1e-6), f"faster {kind} is slower"
    assert said(task) == said(task)


@pytest.mark.parametrize("first", range(0, CASES, AT_ONCE))
def test_random_tasks_are_planned_right(first: int) -> None:
    for number in range(first, first + AT_ONCE):
        try:
            check(a_case(number))
        except AssertionError as error:
            raise AssertionError(f"case {number}: {error}") from error
