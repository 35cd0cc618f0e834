"""What NCCL's topology dump adds to a cluster's graph: shape by claims, rates by measurement."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from ditplan.planner.network.link_classes import link_class
from ditplan.profiles.nccl_topology import NcclTopology, read_nccl_topology
from ditplan.runtime.profiling.link_warnings import link_warnings
from ditplan.runtime.profiling.measured_links import HostClaims, HostSpeeds
from ditplan.runtime.profiling.pair_rounds import HostRanks, Pair
from ditplan.runtime.profiling.pair_sweep import PairSpeed
from ditplan.runtime.profiling.topology_claims import with_topology
from ditplan.runtime.profiling.topology_dump import TopologyDump, read_dump
from ditplan.runtime.ranks.environment import (
    TOPOLOGY_FILE,
    TOPOLOGY_RANK,
    environment,
    nccl_writes_topology,
    variable_set,
)
from tests.unit import nccl_dumps
from tests.unit.nccl_dumps import SWITCHLESS, gpu, net, pci, processor, system
from tests.unit.test_measured_links import H100, PCIE5, measured, rate_of, same

UNKNOWN = HostClaims("cuda", {}, gpu=H100)


def topology(text: str) -> NcclTopology:
    return read_nccl_topology(text.encode(), "dump.xml")


def claims(
    text: str, before: HostClaims = UNKNOWN, *, is_virtual: bool = False, is_given: bool = False
) -> HostClaims:
    """What a host claims with such a dump; its ranks have the GPUs in the dump's order."""
    found = topology(text)
    addresses = [one.address for one in found.gpus]
    dump = TopologyDump(found, is_given=is_given)
    return with_topology(before, dump, addresses, is_virtual=is_virtual)


def test_a_dump_of_switches_and_sockets_gives_each_pair_its_class() -> None:
    claim = claims(nccl_dumps.on_pcie())
    rates = {"pcie-switch": 25e9, "socket": 18e9, "system": 9e9}

    def speed(_: HostRanks, __: HostRanks, pair: Pair, ___: int) -> PairSpeed:
        return PairSpeed(2e-5, rates[claim.ancestors[pair]])

    graph, _ = measured({"a": 8}, {"a": claim}, speed)
    expected = {(0, 1): "pcie switch", (0, 2): "host bridge", (1, 3): "host bridge"}
    expected |= {(0, 4): "socket", (6, 7): "pcie switch", (3, 7): "socket"}
    assert {pair: link_class(graph, *pair) for pair in expected} == expected
    assert rate_of(graph, (0, 1)) == pytest.approx(25e9, rel=0.01)
    assert rate_of(graph, (0, 7)) == pytest.approx(9e9, rel=0.01)


def test_what_nvml_and_sysfs_say_goes_first() -> None:
    known = replace(UNKNOWN, ancestors={(0, 1): "board"}, nvlinks=0, pcie_bytes_per_s=1e9)
    text = system(processor(0, gpu("0000:01:00.0", 0), gpu("0000:02:00.0", 1)))
    assert claims(text, known) == known


def test_bridges_join_pairs_by_nvlink_and_pcie_the_rest() -> None:
    claim = claims(nccl_dumps.on_pcie(1, 1, 4, bridged=True))
    assert claim.nvlinks == 4
    assert claim.bridged == {(0, 1), (2, 3)}

    def speed(_: HostRanks, __: HostRanks, pair: Pair, ___: int) -> PairSpeed:
        return PairSpeed(1e-5, 90e9 if pair in claim.bridged else 20e9)

    graph, _ = measured({"a": 4}, {"a": claim}, speed)
    assert link_class(graph, 0, 1) == link_class(graph, 2, 3) == "nvlink"
    assert link_class(graph, 1, 2) == "pcie switch"


@pytest.mark.parametrize(("rate", "kind"), [(289e9, "nvlink"), (30e9, "pcie")])
def test_in_a_virtual_machine_nvlinks_are_a_claim_and_the_rate_decides(
    rate: float, kind: str
) -> None:
    # NVML knows the PCIe link there, and nothing of NVLinks
    known = replace(UNKNOWN, pcie_bytes_per_s=PCIE5)
    claim = claims(nccl_dumps.virtual_machine(), known, is_virtual=True)
    assert claim == replace(known, nvlinks=18, has_rdma=False)
    graph, by_host = measured({"a": 2}, {"a": claim}, same(rate, 1))
    assert link_class(graph, 0, 1) == kind
    warnings = list(link_warnings({"a": claim}, by_host))
    assert warnings == [] if kind == "nvlink" else "18 NVLinks a GPU are said" in warnings[0]


def test_a_tree_in_a_virtual_machine_counts_only_where_it_was_given() -> None:
    made_up = claims(nccl_dumps.two_sockets(), is_virtual=True)
    assert (made_up.ancestors, made_up.nearest_adapters) == ({}, ())
    assert made_up.pcie_bytes_per_s is None
    given = claims(nccl_dumps.two_sockets(), is_virtual=True, is_given=True)
    assert given.ancestors[0, 1] == "socket"
    assert given.nearest_adapters == (0, 1, 2, 3)


def test_where_no_processor_is_known_no_pair_is_said_to_share_one() -> None:
    assert claims(nccl_dumps.virtual_machine(4)).ancestors == {}


def test_a_dump_of_other_gpus_changes_nothing() -> None:
    dump = TopologyDump(topology(nccl_dumps.two_sockets()))
    addresses = ["0000:99:00.0", "0000:9a:00.0"]
    assert with_topology(UNKNOWN, dump, addresses, is_virtual=False) == UNKNOWN


def crossed_adapters(adapters: int) -> str:
    """Four GPUs of two sockets; NCCL numbers the adapters of the second one first."""
    nodes = []
    for node in range(2):
        nics = (
            pci(
                f"0000:{0x60 + place:02x}:00.0",
                net(f"mlx5_{place}", place, 400_000, f"0x{place + 1}"),
                kind=nccl_dumps.NIC,
            )
            for place in range(adapters)
            if place * 2 // adapters == 1 - node
        )
        buses = (0x10 + 2 * node, 0x11 + 2 * node)
        gpus = (
            gpu(f"0000:{bus:02x}:00.0", bus - 0x10, [(SWITCHLESS, 18, "0x068000")]) for bus in buses
        )
        nodes.append(processor(node, *gpus, *nics))
    return system(*nodes)


@pytest.mark.parametrize("adapters", [2, 4])
def test_each_gpu_goes_by_the_adapter_that_is_nearest(adapters: int) -> None:
    text = crossed_adapters(adapters)
    claim = claims(text, replace(UNKNOWN, pcie_bytes_per_s=PCIE5))
    # adapters are numbered as they stand in the dump: those of socket 0 first
    expected = (0, 0, 1, 1) if adapters == 2 else (0, 1, 2, 3)
    assert claim.nearest_adapters == expected
    both = {"a": claim, "b": claim}

    def speed(mine: HostRanks, other: HostRanks, _: Pair, at_once: int) -> PairSpeed:
        if mine == other:
            return PairSpeed(2e-5, 300e9)
        return PairSpeed(5e-5, min(1.0, adapters / at_once) * 40e9)

    graph, by_host = measured({"a": 4, "b": 4}, both, speed)
    sources = {link.source for link in graph.cluster.links if "/nic" in link.b}
    assert sources == {"an adapter's lanes; nearest by NCCL's topology"}
    assert link_class(graph, 0, 4) == "infiniband"
    assert list(link_warnings(both, by_host)) == []


def test_more_adapters_than_were_measured_are_not_put_into_the_graph() -> None:
    claim = claims(crossed_adapters(4), replace(UNKNOWN, pcie_bytes_per_s=PCIE5))

    def speed(mine: HostRanks, other: HostRanks, _: Pair, at_once: int) -> PairSpeed:
        if mine == other:
            return PairSpeed(2e-5, 300e9)
        return PairSpeed(5e-5, min(1.0, 2 / at_once) * 20e9)

    both = {"a": claim, "b": claim}
    graph, by_host = measured({"a": 4, "b": 4}, both, speed)
    lanes = [link for link in graph.cluster.links if "/nic" in link.b]
    assert {link.source for link in lanes} == {"an adapter's lanes; assumed"}
    assert len({link.b for link in lanes}) == 4
    warnings = list(link_warnings(both, by_host))
    assert len(warnings) == 2
    assert warnings[0].startswith(
        "a: its adapters claim 1600 Gbit/s together, 320 Gbit/s were measured"
    )


def test_a_virtual_adapter_claims_nothing_and_is_ethernet() -> None:
    known = replace(UNKNOWN, pcie_bytes_per_s=PCIE5, has_rdma=True)
    claim = claims(nccl_dumps.virtual_machine(), known, is_virtual=True)
    graph, by_host = measured({"a": 2, "b": 2}, {"a": claim, "b": claim}, same(289e9, 5e9))
    assert link_class(graph, 0, 2) == "ethernet"
    assert list(link_warnings({"a": claim, "b": claim}, by_host)) == []


def test_a_near_pair_that_is_slower_than_a_far_one_is_told() -> None:
    claim = claims(nccl_dumps.on_pcie(), replace(UNKNOWN, pcie_bytes_per_s=32e9))
    rates = dict.fromkeys(itertools.combinations(range(8), 2), 20e9)
    alike = HostSpeeds({pair: PairSpeed(2e-5, rate) for pair, rate in rates.items()})
    assert list(link_warnings({"a": claim}, {"a": alike})) == []
    slow = HostSpeeds({(0, 1): PairSpeed(2e-5, 6e9), (0, 4): PairSpeed(2e-5, 20e9)})
    (warning,) = link_warnings({"a": claim}, {"a": slow})
    assert warning == (
        "a: GPUs 0 and 1 are said to share a PCIe switch, but exchange 48 Gbit/s; 0 and 4, which "
        "don't, have 160 Gbit/s; look at ACS in the firmware"
    )


def test_a_file_that_nccl_was_given_shows_by_switches_that_the_system_lacks(tmp_path: Path) -> None:
    path = tmp_path / "dump.xml"
    path.write_text(nccl_dumps.two_sockets())
    # no machine has a bus 18 of domain ffff
    path.write_text(path.read_text().replace("0000:18:00.0", "ffff:18:00.0"))
    assert read_dump(path).is_given
    path.write_text(nccl_dumps.virtual_machine())
    assert not read_dump(path).is_given
    path.write_text("<graphs/>")
    assert "NCCL's topology dump: line 1: <graphs> comes first" in read_dump(path).fault


def test_a_variable_is_set_for_a_while_alone() -> None:
    name = "DITPLAN_TEST_VARIABLE"
    with pytest.raises(KeyError), variable_set(name, "outer"):
        with variable_set(name, "inner"):
            assert environment()[name] == "inner"
        assert environment()[name] == "outer"
        raise KeyError
    assert name not in environment()


def test_nccl_is_asked_for_its_topology_unless_somebody_has_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(TOPOLOGY_FILE, raising=False)
    with nccl_writes_topology("ours.xml", 3):
        assert environment()[TOPOLOGY_FILE] == "ours.xml"
        assert environment()[TOPOLOGY_RANK] == "3"
    monkeypatch.setenv(TOPOLOGY_FILE, "theirs.xml")
    with nccl_writes_topology("ours.xml", 3):
        assert environment()[TOPOLOGY_FILE] == "theirs.xml"
        assert TOPOLOGY_RANK not in environment()
