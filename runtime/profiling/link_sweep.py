"""Measures the links of a cluster on its ranks, and says what to look at."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ditplan.profiles.cluster import Link, LinkKind
from ditplan.runtime.profiling.host_claims import claims_of, inspect_host
from ditplan.runtime.profiling.link_warnings import link_warnings
from ditplan.runtime.profiling.measured_links import HostClaims, links_of, speeds_by_host
from ditplan.runtime.profiling.pair_rounds import HostRanks, representatives, rounds_of
from ditplan.runtime.profiling.pair_sweep import measure_rounds, of_kind, speeds_of
from ditplan.runtime.profiling.topology_dump import TopologyDump, topology_of_host
from ditplan.runtime.ranks.devices import DeviceReport, common_link_kind
from ditplan.runtime.ranks.pool import RankPool

INSPECTING_S = 60.0
LEAST_TIMEOUT_S = 60.0
READING_S = 60.0
"""For what NCCL wrote of the hosts."""


@dataclass(frozen=True)
class FoundLinks:
    """The links of a cluster, and warnings."""

    links: tuple[Link, ...]
    warnings: tuple[str, ...]


def measured_links(
    pool: RankPool,
    hosts: Sequence[HostRanks],
    reports: Sequence[DeviceReport],
    budget_s: float,
    say: Callable[[str], None],
) -> FoundLinks:
    """Measures pairs that stand for others for about `budget_s`: at least those within hosts.

    Raises:
        RankError: a rank failed.
    """
    if pool.size < 2:
        return FoundLinks((), ())
    dumps = pool.run(topology_of_host, hosts, timeout_s=READING_S)
    claims = _claims(pool, hosts, reports, dumps)
    faults = [
        f"{host.name}: {dump.fault}" for host in hosts if (dump := dumps[host.first]) and dump.fault
    ]
    inside = {
        host.name: representatives(
            host.size, claims[host.name].ancestors, claims[host.name].bridged
        )
        for host in hosts
    }
    rounds = rounds_of(hosts, inside)
    pairs = sum(len(one.pairs) for one in rounds)
    say(f"links: {pairs} exchange{'s' * (pairs > 1)} in {len(rounds)} rounds")
    by_rank = pool.run(measure_rounds, rounds, budget_s, timeout_s=LEAST_TIMEOUT_S + 20 * budget_s)
    measured = speeds_of(rounds, by_rank)
    speeds = speeds_by_host(
        hosts, *(of_kind(rounds, measured, about) for about in ("inside", "flow", "host"))
    )
    sizes = {host.name: host.size for host in hosts}

    def common_kind(host: str, kind: LinkKind) -> LinkKind:
        return common_link_kind([kind] * sizes[host], pool.environment) or kind

    links = links_of(hosts, claims, speeds, common_kind)
    left = len(rounds) - len(measured)
    late = [
        f"{left} of {len(rounds)} rounds of links had no room in the time: what they would have "
        "told is inferred from hosts like them; give it more time"
    ]
    warnings = (*faults, *link_warnings(claims, speeds), *(late if left else ()))
    return FoundLinks(tuple(links), warnings)


def _claims(
    pool: RankPool,
    hosts: Sequence[HostRanks],
    reports: Sequence[DeviceReport],
    dumps: Sequence[TopologyDump | None],
) -> Mapping[str, HostClaims]:
    first = [host.first for host in hosts]
    found = pool.run(inspect_host, first, timeout_s=INSPECTING_S)
    claims = {}
    for host in hosts:
        report = found[host.first]
        assert report is not None
        devices = [reports[rank] for rank in host.ranks]
        claims[host.name] = claims_of(report, devices, dumps[host.first])
    return claims
