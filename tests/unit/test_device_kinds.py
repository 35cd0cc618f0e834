"""Kinds of device are told by their rates: one slow device of the others' name is seen."""

from collections import Counter
from dataclasses import replace

import pytest

from ditplan.planner.network.topology import Topology
from ditplan.planner.report import notes_on
from ditplan.planner.search.pricing import price_all, price_one, space_of
from ditplan.planner.search.search import search
from ditplan.planner.space.approximations import ApproximationPolicy
from ditplan.planner.space.placement import placements
from ditplan.planner.task import Task
from ditplan.profiles.catalog import find_model
from ditplan.profiles.cluster import ClusterProfile, Device
from ditplan.profiles.device_kinds import (
    ON_ONE_HOST,
    fastest_first,
    kinds_of,
    with_kinds_named,
    with_rates_of_kinds,
)
from ditplan.profiles.mesh import Mesh, axis_orders
from tests.unit.planner_factories import a_cluster, a_device

SPEC = find_model("sd3")
RATES = ("half_flops_per_s", "single_flops_per_s", "memory_bytes_per_s")


def rated(times: float, *, measured: bool = True, kind: str = "cuda") -> Device:
    """A device of one name with so many times the rates."""
    fast = a_device(kind=kind)
    changed = {rate: getattr(fast, rate) * times for rate in RATES}
    return fast.model_copy(update=changed | {"measured": measured})


def cluster_of(*times: float, hosts: int = 1) -> ClusterProfile:
    """Hosts of devices of one name with so many times the rates."""
    devices, count = tuple(map(rated, times)), len(times) // hosts
    plain = a_cluster(hosts=hosts, devices=count)
    changed = tuple(
        host.model_copy(update={"devices": devices[i * count : (i + 1) * count]})
        for i, host in enumerate(plain.hosts)
    )
    return plain.model_copy(update={"hosts": changed})


def one_slow(place: int, times: float = 0.1) -> ClusterProfile:
    """Four devices, one of them slower."""
    return cluster_of(*(times if rank == place else 1.0 for rank in range(4)))


def task_on(cluster: ClusterProfile) -> Task:
    """SD3 on the cluster."""
    allowed = ApproximationPolicy()
    return Task(SPEC, SPEC.defaults, cluster, modes=("compile+graph",), allowed=allowed)


@pytest.mark.parametrize("place", range(4))
def test_a_slow_device_is_seen_wherever_it_sits(place: int) -> None:
    assert kinds_of(one_slow(place).devices) == tuple(int(rank != place) for rank in range(4))
    assert Topology(one_slow(place)).has_different_devices
    alike = price_one(task_on(cluster_of(1, 1, 1, 1)), Mesh(cfg=2, ulysses=2), "compile+graph")
    slow = price_one(task_on(one_slow(place)), Mesh(cfg=2, ulysses=2), "compile+graph")
    assert slow.prediction.latency_s > 1.5 * alike.prediction.latency_s


def test_what_uses_all_devices_costs_the_same_wherever_the_slow_one_sits() -> None:
    found = []
    for place in range(4):
        task = replace(task_on(one_slow(place)), allowed=None)
        priced = price_all(task, Topology(task.cluster))[0]
        found.append(
            sorted(one.prediction.latency_s for one in priced if one.configuration.mesh.size == 4)
        )
    # tokens are whole, and the rank with one more is another one
    assert all(latencies == pytest.approx(found[0], rel=1e-3) for latencies in found)


def test_an_order_in_which_the_slow_one_is_in_the_way_is_said() -> None:
    results = [search(task_on(one_slow(place))) for place in range(4)]
    # three devices without the slow one are best; only the first ranks can be used
    last = results[-1]
    assert last.best.configuration.mesh.size == 3
    assert not last.better_order
    for found in results[:-1]:
        assert found.best.latency_s > last.best.latency_s
        assert found.better_order is not None
        assert found.better_order.latency_s == pytest.approx(last.best.latency_s, rel=1e-6)
        assert any("list fast devices first" in note for note in notes_on(found))


def test_unlike_hosts_with_the_fast_one_last_are_tried_in_the_other_order() -> None:
    slow_first = search(replace(task_on(cluster_of(0.1, 0.1, 1, 1, hosts=2)), allowed=None))
    fast_first = search(replace(task_on(cluster_of(1, 1, 0.1, 0.1, hosts=2)), allowed=None))
    assert fast_first.better_order is None
    assert slow_first.better_order is not None
    assert slow_first.better_order.latency_s == pytest.approx(fast_first.best.latency_s, rel=1e-6)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2), (2, 3, 1, 0)])
def test_noise_makes_no_kinds(order: tuple[int, ...]) -> None:
    times = [1.0, 0.97, 1.03, 1.05]
    cluster = cluster_of(*(times[place] for place in order))
    assert set(kinds_of(cluster.devices)) == {0}
    named = with_kinds_named(cluster)
    assert len(set(named.devices)) == 1
    assert named.devices == with_kinds_named(cluster_of(*times)).devices


def test_ranks_of_a_cpu_differ_more_than_gpus_before_they_are_of_two_kinds() -> None:
    gpus, cpus = ([rated(times, kind=kind) for times in (1, 0.7)] for kind in ("cuda", "cpu"))
    assert kinds_of(gpus) == (1, 0)
    assert kinds_of(cpus) == (0, 0)


def test_ranks_of_one_host_s_cpu_are_one_kind_whatever_share_each_got() -> None:
    gpus, ranks = [rated(1.0), rated(0.1)], [rated(share, kind="cpu") for share in (1.0, 0.1, 0.5)]
    assert len(set(with_rates_of_kinds(gpus, ON_ONE_HOST))) == 2
    assert set(with_rates_of_kinds(ranks, ON_ONE_HOST)) == {ranks[2]}


def test_many_kinds_are_seated_in_few_ways_and_no_worse_than_as_listed() -> None:
    cluster = cluster_of(*(1 - 0.11 * rank for rank in range(8)))
    topology = Topology(cluster)
    assert len(set(topology.device_names)) > 3
    mesh = Mesh(cfg=2, pipefusion=2, ulysses=2)
    assert len(placements(mesh, topology)) <= 3 * len(axis_orders(mesh))
    # all settings of a mesh but its first are priced on one placement
    task = replace(task_on(cluster), modes=("eager", "compile", "compile+graph"))
    priced = price_all(task, topology)[0]
    per_mesh = Counter(one.configuration.mesh.degrees for one in priced)
    space = space_of(task, topology)
    for choice in space.choices:
        placed = len(placements(choice.mesh, topology, choice.orders))
        assert per_mesh[choice.mesh.degrees] <= placed + len(choice.settings)
    as_listed = price_one(task, mesh, "compile+graph").prediction.latency_s
    same = [one for one in priced if one.configuration.mesh == mesh]
    if same:
        assert min(one.prediction.latency_s for one in same) <= as_listed * (1 + 1e-6)


def test_devices_move_with_their_links() -> None:
    cluster = cluster_of(0.1, 1.0)
    slow_link = cluster.links[0].model_copy(update={"bytes_per_s": 1e9})
    cluster = cluster.model_copy(update={"links": (slow_link, *cluster.links[1:])})
    assert cluster.links[0].a == "h0/0"
    moved = fastest_first(cluster)
    assert [one.half_flops_per_s for one in moved.devices] == sorted(
        (one.half_flops_per_s for one in cluster.devices), reverse=True
    )
    assert next(link.bytes_per_s for link in moved.links if link.a == "h0/1") == 1e9
    assert fastest_first(moved) == moved
