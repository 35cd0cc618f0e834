"""NCCL writes down the topology of two GPUs when it joins their ranks."""

import pytest

from ditplan.runtime.groups import RankContext
from ditplan.runtime.profiling.link_sweep import measured_links
from ditplan.runtime.profiling.pair_rounds import hosts_in_order
from ditplan.runtime.profiling.topology_dump import topology_of_host
from ditplan.runtime.ranks.devices import inspect_device
from ditplan.runtime.ranks.environment import TOPOLOGY_FILE, environment
from ditplan.runtime.ranks.pool import RankPool

pytestmark = pytest.mark.gpu


def variable(_: RankContext) -> str | None:
    return environment().get(TOPOLOGY_FILE)


def test_the_dump_names_the_gpus_of_the_ranks_and_leaves_nothing_behind() -> None:
    hosts = hosts_in_order({"localhost": 2})
    with RankPool(None, 2, "cuda") as pool:
        reports = pool.run(inspect_device, timeout_s=120.0)
        first, other = pool.run(topology_of_host, hosts, timeout_s=120.0)
        assert pool.run(variable, timeout_s=60.0) == [environment().get(TOPOLOGY_FILE)] * 2
        found = measured_links(pool, hosts, reports, 10.0, lambda _: None)
    assert other is None
    assert first is not None
    assert first.fault == ""
    assert {gpu.address for gpu in first.topology.gpus} == {
        report.facts.pci_address for report in reports if report.facts is not None
    }
    assert {link.kind for link in found.links} <= {"nvlink", "pcie", "socket"}
