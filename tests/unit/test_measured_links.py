"""Links of many hosts from few exchanges: made-up speeds go in, and the graph has them again."""

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditplan.planner.network.link_classes import link_class
from ditplan.planner.network.topology import Topology
from ditplan.profiles.cluster import ClusterProfile, Device, Host, LinkKind
from ditplan.runtime.profiling.link_warnings import link_warnings
from ditplan.runtime.profiling.measured_links import (
    HostClaims,
    HostSpeeds,
    links_of,
    speeds_by_host,
)
from ditplan.runtime.profiling.pair_rounds import (
    HostRanks,
    Pair,
    hosts_in_order,
    representatives,
    rounds_of,
)
from ditplan.runtime.profiling.pair_sweep import PairSpeed, of_kind
from ditplan.runtime.ranks.gpu_inventory import Ancestor

H100 = "NVIDIA H100 80GB HBM3"
PCIE5 = 63e9
SpeedOf = Callable[[HostRanks, HostRanks, Pair, int], PairSpeed]
"""Of two hosts, a pair of their own devices, and how many pairs of these hosts exchange at once."""


def as_found(_: str, kind: LinkKind) -> LinkKind:
    return kind


def measured(
    sizes: dict[str, int],
    claims: dict[str, HostClaims],
    speed_of: SpeedOf,
    rounds_measured: int | None = None,
) -> tuple[Topology, dict[str, HostSpeeds]]:
    """The cluster as it is found where exchanges take what `speed_of` says."""
    hosts = hosts_in_order(sizes)
    owner = {rank: host for host in hosts for rank in host.ranks}
    inside = {
        name: representatives(size, claims[name].ancestors, claims[name].bridged)
        for name, size in sizes.items()
    }
    rounds = rounds_of(hosts, inside)[:rounds_measured]
    speeds: list[dict[Pair, PairSpeed]] = []
    for one in rounds:
        found = {}
        for a, b in one.pairs:
            mine, other = owner[a], owner[b]
            at_once = sum(owner[c] == mine and owner[d] == other for c, d in one.pairs)
            found[a, b] = speed_of(mine, other, (a - mine.first, b - other.first), at_once)
        speeds.append(found)
    by_host = speeds_by_host(
        hosts, *(of_kind(rounds, speeds, about) for about in ("inside", "flow", "host"))
    )
    device = Device(
        name=H100,
        kind=next(iter(claims.values())).device,
        memory_bytes=10**10,
        half_flops_per_s=1e14,
        single_flops_per_s=1e13,
        memory_bytes_per_s=1e12,
        source="test",
    )
    cluster = ClusterProfile(
        name="test",
        hosts=tuple(Host(name=host.name, devices=(device,) * host.size) for host in hosts),
        links=tuple(links_of(hosts, claims, by_host, as_found)),
        source="test",
    )
    return Topology(cluster), by_host


def rate_of(topology: Topology, *pairs: Pair) -> float:
    """Bytes/s each way of a large message between pairs at once."""
    return 2**33 / topology.collective_s("send_recv", 2**33, pairs).seconds


def same(rate: float, network: float) -> SpeedOf:
    """Alike hosts, and an adapter for each that all of a host share."""

    def speed(mine: HostRanks, other: HostRanks, _: Pair, at_once: int) -> PairSpeed:
        return PairSpeed(2e-5, rate) if mine == other else PairSpeed(5e-5, network / at_once)

    return speed


@given(st.lists(st.integers(1, 9), min_size=1, max_size=40))
def test_every_host_takes_part_and_every_gpu_reaches_every_other(sizes: list[int]) -> None:
    named = {f"h{place}": size for place, size in enumerate(sizes)}
    claims = {name: HostClaims("cuda", {}, gpu=H100, pcie_bytes_per_s=PCIE5) for name in named}
    if sum(sizes) < 2:
        return
    topology, by_host = measured(named, claims, same(40e9, 5e9))
    assert all(speeds.inside for name, speeds in by_host.items() if named[name] > 1)
    assert all(speeds.flow for speeds in by_host.values()) == (len(sizes) > 1)
    for a, b in itertools.pairwise(range(sum(sizes))):
        assert topology.links.path(a, b) is not None


def test_exchanges_grow_slower_than_hosts_squared() -> None:
    counts = {}
    for hosts in (2, 8, 32, 128):
        sizes = {f"h{place}": 8 for place in range(hosts)}
        inside = dict.fromkeys(sizes, representatives(8, {}))
        rounds = rounds_of(hosts_in_order(sizes), inside)
        # a host's 8 ranks send at once in half of the rounds: counted by pairs of hosts
        counts[hosts] = sum(len(one.pairs) // (8 if one.about == "host" else 1) for one in rounds)
        assert len(rounds) <= 3 + 2 * hosts.bit_length()
    assert counts[128] == 3 * 128 + 2 * 64 * 7
    assert counts[128] / counts[8] < 32


@pytest.mark.parametrize(
    ("rate", "nvlinks", "kind"),
    [(289e9, 18, "nvlink"), (289e9, None, "nvlink"), (30e9, 18, "pcie"), (30e9, 0, "pcie")],
)
def test_what_was_measured_decides_whether_it_is_nvlink(
    rate: float, nvlinks: int | None, kind: str
) -> None:
    claims = {"a": HostClaims("cuda", {}, gpu=H100, pcie_bytes_per_s=PCIE5, nvlinks=nvlinks)}
    topology, by_host = measured({"a": 8}, claims, same(rate, 1))
    assert {link.kind for link in topology.cluster.links} == {kind}
    assert rate_of(topology, (0, 5)) == pytest.approx(rate, rel=0.01)
    warnings = list(link_warnings(claims, by_host))
    assert len(warnings) == (kind == "pcie")
    assert all("NVLink" in text for text in warnings)


def two_sockets(pair: Pair) -> Ancestor:
    a, b = pair
    if a // 2 == b // 2:
        return "pcie-switch"
    return "host-bridge" if a // 4 == b // 4 else "system"


CLASSES: dict[Ancestor, tuple[str, float]] = {
    "pcie-switch": ("pcie switch", 25e9),
    "host-bridge": ("host bridge", 18e9),
    "system": ("socket", 9e9),
}


def test_a_tree_of_switches_bridges_and_sockets_has_a_class_and_a_rate_for_each_pair() -> None:
    ancestors = {pair: two_sockets(pair) for pair in itertools.combinations(range(8), 2)}
    claims = {"a": HostClaims("cuda", ancestors, gpu="L40", pcie_bytes_per_s=32e9)}

    def speed(_: HostRanks, __: HostRanks, pair: Pair, ___: int) -> PairSpeed:
        return PairSpeed(2e-5, CLASSES[two_sockets(pair)][1])

    topology, _ = measured({"a": 8}, claims, speed)
    for pair, ancestor in ancestors.items():
        name, rate = CLASSES[ancestor]
        assert link_class(topology, *pair) == name
        assert rate_of(topology, pair) == pytest.approx(rate, rel=0.01)


def test_bridges_join_pairs_by_nvlink_and_pcie_the_rest() -> None:
    claims = {
        "a": HostClaims(
            "cuda", {}, bridged=frozenset({(0, 1), (2, 3)}), gpu="x", pcie_bytes_per_s=32e9
        )
    }

    def speed(_: HostRanks, __: HostRanks, pair: Pair, ___: int) -> PairSpeed:
        return PairSpeed(1e-5, 50e9) if pair in claims["a"].bridged else PairSpeed(2e-5, 20e9)

    topology, _ = measured({"a": 4}, claims, speed)
    assert [link_class(topology, *pair) for pair in ((0, 1), (2, 3), (0, 2))] == [
        "nvlink",
        "nvlink",
        "pcie",
    ]
    assert rate_of(topology, (2, 3)) == pytest.approx(50e9, rel=0.01)
    assert rate_of(topology, (1, 2)) == pytest.approx(20e9, rel=0.01)


@pytest.mark.parametrize("adapters", [1, 2, 8])
def test_adapters_are_told_by_what_all_ranks_have_together(adapters: int) -> None:
    claims = {
        name: HostClaims("cuda", {}, gpu=H100, pcie_bytes_per_s=PCIE5, has_rdma=True)
        for name in "ab"
    }

    def speed(mine: HostRanks, other: HostRanks, _: Pair, at_once: int) -> PairSpeed:
        if mine == other:
            return PairSpeed(2e-5, 300e9)
        return PairSpeed(5e-5, min(1.0, adapters / at_once) * 40e9)

    topology, _ = measured({"a": 8, "b": 8}, claims, speed)
    across = [(device, device + 8) for device in range(8)]
    assert rate_of(topology, across[3]) == pytest.approx(40e9, rel=0.01)
    assert rate_of(topology, *across) == pytest.approx(adapters * 5e9, rel=0.01)
    assert link_class(topology, 0, 8) == "infiniband"
    assert link_class(topology, 0, 1) == "nvlink"


def test_one_slow_host_is_told_by_name_and_slows_nobody_else() -> None:
    names = [f"h{place}" for place in range(9)]
    claims = {name: HostClaims("cpu", {}) for name in names}

    def speed(mine: HostRanks, other: HostRanks, _: Pair, at_once: int) -> PairSpeed:
        if mine == other:
            return PairSpeed(2e-5, 4e9)
        rate = 0.1e9 if "h5" in (mine.name, other.name) else 1e9
        return PairSpeed(5e-5, rate / at_once)

    topology, by_host = measured(dict.fromkeys(names, 2), claims, speed)
    (warning,) = link_warnings(claims, by_host)
    assert warning.startswith("h5 is slow: 0.8 Gbit/s to other hosts, 8 Gbit/s is usual")
    assert rate_of(topology, (8, 12)) == pytest.approx(1e9, rel=0.01)
    assert rate_of(topology, (8, 10)) == pytest.approx(0.1e9, rel=0.01)


def test_what_the_time_had_no_room_for_is_inferred_and_marked() -> None:
    names = [f"h{place}" for place in range(5)]
    claims = {name: HostClaims("cpu", {}) for name in names}
    topology, by_host = measured(dict.fromkeys(names, 2), claims, same(4e9, 1e9), 2)
    # the fifth has no partner in the first round between hosts
    assert by_host["h4"].flow is None
    sources = {link.a.partition("/")[0]: link.source for link in topology.cluster.links}
    assert [sources[name].partition(":")[0] for name in names] == ["measured"] * 4 + ["inferred"]
    assert rate_of(topology, (0, 8)) == pytest.approx(1e9, rel=0.01)


def test_interfaces_are_held_against_what_they_claim() -> None:
    claim = HostClaims(
        "cpu",
        {},
        interface="eth0",
        interface_bytes_per_s=0.125e9,
        faster=("ib0", 25e9),
    )
    speeds = {name: HostSpeeds({}, PairSpeed(1e-4, 0.11e9)) for name in "ab"}
    warnings = list(link_warnings({"a": claim, "b": HostClaims("cpu", {})}, speeds))
    assert warnings == [
        "a: ranks talk over eth0 (0.88 Gbit/s measured), ib0 claims 200 Gbit/s; if all hosts have "
        "it, choose that interface"
    ]
    veth = HostClaims("cpu", {}, interface="veth0", interface_bytes_per_s=1.25e9)
    (warning,) = link_warnings({"a": veth, "b": HostClaims("cpu", {})}, speeds)
    assert warning == "a: interface veth0 claims 10 Gbit/s, 0.88 Gbit/s were measured"


def test_peer_access_that_is_off_is_told() -> None:
    claims = {"a": HostClaims("cuda", {}, gpu="x", strangers=6, pcie_bytes_per_s=32e9)}
    speeds = {"a": HostSpeeds({(0, 1): PairSpeed(1e-4, 5e9)})}
    (warning,) = link_warnings(claims, speeds)
    assert "6 pairs of GPUs can't read each other's memory" in warning
