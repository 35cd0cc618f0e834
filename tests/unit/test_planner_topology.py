"""Collectives: measured tables are believed, links are shared, more bandwidth never hurts."""

import itertools
import math
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditplan.planner.network.topology import Topology
from ditplan.profiles.cluster import ClusterProfile, Operation
from ditplan.profiles.cost_constants import CostConstants
from ditplan.profiles.errors import InputError
from tests.unit.planner_factories import a_cluster, a_table

OPERATIONS: tuple[Operation, ...] = typing.get_args(Operation)
SECONDS = {2**16: 43e-6, 2**20: 45e-6, 2**24: 59e-6, 2**28: 510e-6}
LAUNCH_S = CostConstants().collective_launch_s


def test_interpolation_hits_measured_points_exactly() -> None:
    topology = Topology(a_cluster(collectives=(a_table("all_to_all", SECONDS),)))
    for count, seconds in SECONDS.items():
        found = topology.collective_s("all_to_all", count, [(0, 1)])
        assert (found.seconds, found.source) == (seconds, "measured")


@given(st.floats(1, 2**30))
def test_interpolation_stays_between_neighbours(count: float) -> None:
    topology = Topology(a_cluster(collectives=(a_table("all_to_all", SECONDS),)))
    found = topology.collective_s("all_to_all", count, [(0, 1)]).seconds
    below = [s for b, s in SECONDS.items() if b <= count]
    above = [s for b, s in SECONDS.items() if b >= count]
    assert not below or found >= below[-1] * 0.999
    assert not above or found <= above[0] * 1.001


def test_interpolation_is_straight_in_log_log() -> None:
    table = a_table("send_recv", {2**10: 1e-5, 2**14: 16e-5})
    topology = Topology(a_cluster(collectives=(table,)))
    assert topology.collective_s("send_recv", 2**12, [(0, 1)]).seconds == pytest.approx(4e-5)


def test_latency_holds_below_and_bandwidth_beyond_the_measured_sizes() -> None:
    topology = Topology(a_cluster(collectives=(a_table("all_to_all", SECONDS),)))
    assert topology.collective_s("all_to_all", 1, [(0, 1)]).seconds == 43e-6
    found = topology.collective_s("all_to_all", 2**30, [(0, 1)]).seconds
    assert found == pytest.approx(4 * 510e-6)


def test_a_group_of_one_takes_no_time_and_moves_nothing() -> None:
    topology = Topology(a_cluster())
    assert topology.collective_s("all_to_all", 2**20, [(0,), (1,)]).seconds == 0
    assert topology.link_bytes("all_to_all", 2**20, [(0,)]) == {}


def test_table_of_another_stride_is_corrected_by_the_links() -> None:
    """On a uniform switch the stride makes no difference, so the table's time comes back."""
    table = a_table("all_to_all", SECONDS, stride=1, groups=2)
    topology = Topology(a_cluster(devices=4, collectives=(table,)))
    found = topology.collective_s("all_to_all", 2**24, [(0, 2), (1, 3)])
    assert found.source == "interpolated"
    assert found.seconds == pytest.approx(59e-6)


def test_table_over_other_kinds_of_link_is_not_taken() -> None:
    table = a_table("all_to_all", SECONDS, stride=1, groups=2)
    topology = Topology(a_cluster(hosts=2, devices=2, collectives=(table,)))
    found = topology.collective_s("all_to_all", 2**24, [(0, 2), (1, 3)])
    assert found.source == "computed"
    assert found.seconds > 2 * 59e-6


@pytest.mark.parametrize(
    ("groups", "is_measured"),
    [
        ([(0, 1), (2, 3)], True),
        ([(0, 1)], False),
        ([(0, 2), (1, 3)], False),
        ([(0, 1, 2, 3)], False),
        ([(0,)], False),
    ],
)
def test_only_a_table_of_just_these_groups_counts_as_measured(
    groups: list[tuple[int, ...]], is_measured: bool
) -> None:
    table = a_table("peer_all_to_all", SECONDS, stride=1, groups=2)
    topology = Topology(a_cluster(devices=4, collectives=(table,)))
    assert topology.is_measured("peer_all_to_all", groups) == is_measured
    assert not topology.is_measured("all_to_all", groups)


def test_irregular_groups_are_priced() -> None:
    table = a_table("all_to_all", SECONDS, size=3, groups=1)
    topology = Topology(a_cluster(devices=4, collectives=(table,)))
    assert topology.collective_s("all_to_all", 2**20, [(0, 1, 3)]).source == "interpolated"


def test_nothing_measured_and_no_links_is_said() -> None:
    cluster = a_cluster(collectives=(a_table("all_to_all", SECONDS),))
    topology = Topology(cluster.model_copy(update={"links": ()}))
    assert topology.collective_s("all_to_all", 2**20, [(0, 1)]).source == "measured"
    assert topology.link_bytes("all_to_all", 2**20, [(0, 1)]) == {}
    with pytest.raises(InputError, match=r"no send_recv of 2 ranks was measured.*profile"):
        topology.collective_s("send_recv", 2**20, [(0, 1)])


def test_groups_at_once_share_the_link_between_hosts() -> None:
    topology = Topology(a_cluster(hosts=2, devices=4))
    count = 2**26

    def transfer_s(groups: list[tuple[int, ...]]) -> float:
        return topology.collective_s("send_recv", count, groups).seconds - LAUNCH_S - 48e-6

    one = transfer_s([(0, 4)])
    four = transfer_s([(0, 4), (1, 5), (2, 6), (3, 7)])
    assert one == pytest.approx(count / 2e9, rel=1e-3)
    assert four == pytest.approx(4 * one, rel=1e-3)


def test_both_directions_of_a_link_count_apart() -> None:
    """Two ranks that exchange over one link take as long as one that sends."""
    topology = Topology(a_cluster(hosts=2, devices=1))
    found = topology.collective_s("send_recv", 2**26, [(0, 1)]).seconds
    assert found == pytest.approx(2**26 / 2e9, rel=0.01)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("size", [2, 3, 4])
def test_link_bytes_equal_an_independent_count(operation: Operation, size: int) -> None:
    group, count = tuple(range(size)), 1000.0
    sent_by_each = {
        "all_to_all": count * (size - 1) / size,
        "all_gather": count * (size - 1),
        "send_recv": count,
        "all_reduce": 2 * count * (size - 1) / size,
        "peer_all_to_all": count * (size - 1) / size,
        "peer_all_gather": count * (size - 1),
    }[operation]
    found = Topology(a_cluster(devices=size)).link_bytes(operation, count, [group])
    assert found == pytest.approx({"nvlink": size * sent_by_each})


def test_messages_that_stay_on_a_host_cross_no_ethernet() -> None:
    topology = Topology(a_cluster(hosts=2, devices=2))
    found = topology.link_bytes("all_to_all", 1000.0, [(0, 1, 2, 3)])
    assert found == pytest.approx({"nvlink": 3000.0, "ethernet": 2000.0})


@given(
    factors=st.lists(st.floats(1, 100), min_size=6, max_size=6),
    operation=st.sampled_from(OPERATIONS),
    count=st.floats(1, 1e9),
    order=st.permutations(range(4)),
)
def test_more_bandwidth_never_hurts(
    factors: list[float], operation: Operation, count: float, order: list[int]
) -> None:
    slow = a_cluster(hosts=2, devices=2)
    fast = with_factors(slow, factors)
    for groups in ([tuple(order)], [tuple(order[:2]), tuple(order[2:])]):
        before = Topology(slow).collective_s(operation, count, groups).seconds
        assert Topology(fast).collective_s(operation, count, groups).seconds <= before * (1 + 1e-9)


@given(
    st.sampled_from(OPERATIONS),
    st.floats(1, 1e9),
    st.sampled_from(list(itertools.permutations(range(2)))),
)
def test_relabelling_hosts_changes_nothing(
    operation: Operation, count: float, hosts: tuple[int, ...]
) -> None:
    topology = Topology(a_cluster(hosts=2, devices=3))
    groups = [(0, 1, 3), (2, 4, 5)]
    moved = [tuple(hosts[rank // 3] * 3 + rank % 3 for rank in group) for group in groups]
    before = topology.collective_s(operation, count, groups).seconds
    assert math.isclose(topology.collective_s(operation, count, moved).seconds, before)


def with_factors(cluster: ClusterProfile, factors: list[float]) -> ClusterProfile:
    """The cluster with each link's bandwidth multiplied."""
    links = tuple(
        link.model_copy(update={"bytes_per_s": link.bytes_per_s * factor})
        for link, factor in zip(cluster.links, factors, strict=True)
    )
    return cluster.model_copy(update={"links": links})
