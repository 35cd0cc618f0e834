"""The class of the way between two ranks: what of a cluster's graph it crosses at its farthest."""

from ditplan.planner.network.topology import Topology
from ditplan.profiles.link_class import LinkClass


def link_class(topology: Topology, a: int, b: int) -> LinkClass | None:
    """The class of the way between two ranks, by its links and the names of its nodes; None where
    none is known.
    """
    links = topology.links_between(a, b)
    kinds = {kind for _, kind in links}
    nodes = {node.rpartition("/")[2].rstrip("0123456789") for hop, _ in links for node in hop}
    found: tuple[tuple[LinkClass, bool], ...] = (
        ("infiniband", "infiniband" in kinds),
        ("ethernet", "ethernet" in kinds),
        ("socket", "socket" in kinds),
        ("nvlink", kinds == {"nvlink"}),
        ("host bridge", not nodes.isdisjoint({"bridge", "socket"})),
        ("pcie switch", "switch" in nodes),
        ("memory", kinds == {"memory"}),
        ("pcie", bool(kinds)),
    )
    return next((name for name, holds in found if holds), None)
