"""A cluster whose links of one kind are faster or slower than they are."""

from ditplan.planner.network.tables import table_groups
from ditplan.planner.network.topology import Topology
from ditplan.profiles.cluster import ClusterProfile, CollectiveTable, LinkKind
from ditplan.profiles.errors import InputError, Setting


def with_links_scaled(cluster: ClusterProfile, kind: str, times: float) -> ClusterProfile:
    """The cluster with `times` the bandwidth on all links of a kind; latencies stay.

    Measured collectives whose slowest link is of that kind are scaled as well: what they take
    beyond their shortest duration, which is latency, is divided by `times`.

    Raises:
        InputError: there is no link of that kind.
    """
    if kind not in cluster.link_kinds:
        kinds = ", ".join(cluster.link_kinds) or "none"
        raise InputError(Setting("link", kind), f": {cluster.name} has links of: {kinds}")
    links = tuple(
        link.model_copy(update={"bytes_per_s": link.bytes_per_s * times})
        if link.kind == kind
        else link
        for link in cluster.links
    )
    tables = cluster.collectives
    if tables:
        topology = Topology(cluster)
        tables = tuple(
            _scaled(table, times) if _slowest_kind(topology, table) == kind else table
            for table in tables
        )
    source = f"{cluster.source}; {kind} links {times:g} times as fast"
    changes = {
        "name": f"{cluster.name}-{kind}-x{times:g}",
        "links": links,
        "collectives": tables,
        "source": source,
    }
    # checked again, as the rates have bounds
    return ClusterProfile.model_validate({**dict(cluster), **changes})


def _slowest_kind(topology: Topology, table: CollectiveTable) -> LinkKind | None:
    groups = table_groups(table, topology.ranks)
    return topology.slowest_kind(groups) if groups else None


def _scaled(table: CollectiveTable, times: float) -> CollectiveTable:
    least_s = min(point.median_s for point in table.points)
    points = tuple(
        point.model_copy(
            update={
                "median_s": least_s + (point.median_s - least_s) / times,
                "p95_s": least_s + max(0.0, point.p95_s - least_s) / times,
            }
        )
        for point in table.points
    )
    return table.model_copy(update={"points": points})
