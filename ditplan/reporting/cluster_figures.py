"""The cluster in a report: its graph of links, and the bandwidth between its pairs of ranks."""

from collections import defaultdict, deque
from typing import Any

from ditplan.explaining.subject import Subject
from ditplan.planner.network.topology import Topology
from ditplan.profiles.cluster import ClusterProfile, Link
from ditplan.profiles.errors import InputError
from ditplan.reporting.figure import BLUE, COLOURS, GREY, Figure, LeftOut, Table

GRAPH, HEAT_MAP = "cluster", "bandwidth"

MOST_DRAWN = 32
"""With more devices than this the hosts of the first ones are drawn."""

MESSAGE_BYTES = 64 * 2**20
"""Of the messages whose bandwidth is shown: large enough that latency has little say."""

NUMBERED = 8
"""A heat map of up to so many ranks has its numbers in its cells."""


def cluster_graph(subject: Subject) -> Figure | LeftOut:
    """Devices, switches and links, with their bandwidth; the plan's devices stand out."""
    cluster = subject.task.cluster
    if not cluster.links:
        why = f"{cluster.name} has no links: its collectives were measured, not its wires."
        return LeftOut(GRAPH, "The cluster", why)
    drawn = _drawn_hosts(cluster)
    links = [link for link in cluster.links if _is_drawn(link, cluster, drawn)]
    places = _places(cluster, links)
    kinds = list(dict.fromkeys(link.kind for link in links))
    data = [_edges(kind, links, places, COLOURS[(n + 1) % 6]) for n, kind in enumerate(kinds)]
    used = {cluster.device_nodes[rank] for rank in subject.plan.configuration.placement}
    data += [_nodes(cluster, places, used)]
    rows = [
        (link.a, link.b, link.kind, f"{link.bytes_per_s / 1e9:.4g}", f"{link.latency_s * 1e6:.3g}")
        for link in links
    ]
    left = len(cluster.hosts) - len(drawn)
    text = (
        f"{len(cluster.devices)} devices on {len(cluster.hosts)} host(s), {cluster.source}. "
        f"Blue: the plan's. The wider a line, the faster the link."
    )
    text += f" {left} further host(s) are wired likewise and not drawn." if left else ""
    axis = {"visible": False, "fixedrange": True}
    layout = {"xaxis": axis, "yaxis": axis, "hovermode": "closest"}
    return Figure(
        GRAPH,
        "The cluster",
        f"Graph of {cluster.name}: {len(places)} nodes and {len(links)} links",
        text,
        data,
        layout,
        Table(("from", "to", "kind", "GB/s", "latency us"), rows),
        height=330,
    )


def _drawn_hosts(cluster: ClusterProfile) -> set[str]:
    drawn: set[str] = set()
    devices = 0
    for host in cluster.hosts:
        devices += len(host.devices)
        if drawn and devices > MOST_DRAWN:
            break
        drawn.add(host.name)
    return drawn


def _is_drawn(link: Link, cluster: ClusterProfile, drawn: set[str]) -> bool:
    others = {host.name for host in cluster.hosts} - drawn
    return not any(node.partition("/")[0] in others for node in (link.a, link.b))


def _places(cluster: ClusterProfile, links: list[Link]) -> dict[str, tuple[float, float]]:
    """Devices in a row, in order; each other node above those that it is joined to, as high as it
    is far from them.
    """
    joined: defaultdict[str, list[str]] = defaultdict(list)
    for link in links:
        joined[link.a].append(link.b)
        joined[link.b].append(link.a)
    devices = [node for node in cluster.device_nodes if node in joined]
    hosts = list(dict.fromkeys(node.partition("/")[0] for node in devices))
    places = {
        node: (float(number + hosts.index(node.partition("/")[0])), 0.0)
        for number, node in enumerate(devices)
    }
    level = dict.fromkeys(devices, 0)
    waiting = deque(devices)
    while waiting:
        node = waiting.popleft()
        for other in joined[node]:
            if other not in level:
                level[other] = level[node] + 1
                waiting.append(other)
    for node in sorted(level, key=lambda name: (level[name], name)):
        if node in places:
            continue
        below = [places[other][0] for other in joined[node] if level[other] < level[node]]
        places[node] = (sum(below) / len(below), float(level[node]))
    return _apart(places)


def _apart(places: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """Nodes that came to lie on one another are moved to the side."""
    taken: set[tuple[float, float]] = set()
    moved = {}
    for node, (x, y) in places.items():
        while (x, y) in taken:
            x += 0.5
        taken.add((x, y))
        moved[node] = (x, y)
    return moved


def _edges(
    kind: str, links: list[Link], places: dict[str, tuple[float, float]], colour: str
) -> dict[str, Any]:
    of_kind = [link for link in links if link.kind == kind]
    x: list[float | None] = []
    y: list[float | None] = []
    words: list[str | None] = []
    for link in of_kind:
        (ax, ay), (bx, by) = places[link.a], places[link.b]
        # directly joined devices: a bow below the row
        middle_y = -0.25 - 0.08 * abs(bx - ax) if ay == by == 0 else (ay + by) / 2
        x += [ax, (ax + bx) / 2, bx, None]
        y += [ay, middle_y, by, None]
        said = f"{link.a} - {link.b}: {kind}, {link.bytes_per_s / 1e9:.4g} GB/s ({link.source})"
        words += [said, said, said, None]
    fastest = max(link.bytes_per_s for link in of_kind)
    slowest = min(link.bytes_per_s for link in of_kind)
    rates = f"{fastest / 1e9:.3g}"
    if fastest > 1.01 * slowest:
        rates = f"{slowest / 1e9:.3g} to {rates}"
    # a line of a GB/s is thin, one of hundreds wide
    width = min(7.0, max(1.2, (fastest / 1e9) ** 0.33))
    return {
        "type": "scatter",
        "mode": "lines",
        "name": f"{kind}, {rates} GB/s",
        "x": x,
        "y": y,
        "text": words,
        "hoverinfo": "text",
        "line": {"width": width, "color": colour},
    }


def _nodes(
    cluster: ClusterProfile, places: dict[str, tuple[float, float]], used: set[str]
) -> dict[str, Any]:
    number = {node: str(rank) for rank, node in enumerate(cluster.device_nodes)}
    return {
        "type": "scatter",
        "mode": "markers+text",
        "showlegend": False,
        "x": [place[0] for place in places.values()],
        "y": [place[1] for place in places.values()],
        "text": [number.get(node, node.rpartition("/")[2]) for node in places],
        "textposition": ["middle center" if node in number else "top center" for node in places],
        "hovertext": [
            f"rank {number[node]}: {cluster.devices[int(number[node])].name}"
            if node in number
            else node
            for node in places
        ],
        "hoverinfo": "text",
        "textfont": {"size": 11},
        "marker": {
            "size": [22 if node in number else 10 for node in places],
            "symbol": ["circle" if node in number else "square" for node in places],
            "color": [f"{BLUE}88" if node in used else f"{GREY}88" for node in places],
        },
    }


def heat_map(subject: Subject) -> Figure | LeftOut:
    """What a large message from one rank to another reaches, for all pairs."""
    cluster = subject.task.cluster
    title = "Bandwidth between ranks"
    ranks = min(len(cluster.devices), MOST_DRAWN)
    if ranks < 2:
        return LeftOut(HEAT_MAP, title, f"{cluster.name} has one device, so there are no pairs.")
    topology = Topology(cluster)
    rates: list[list[float | None]] = []
    sources = set()
    try:
        for a in range(ranks):
            row: list[float | None] = []
            for b in range(ranks):
                if a == b:
                    row.append(None)
                    continue
                found = topology.collective_s("send_recv", MESSAGE_BYTES, [(a, b)])
                sources.add(found.source)
                row.append(round(MESSAGE_BYTES / found.seconds / 1e9, 3))
            rates.append(row)
    except InputError as error:
        return LeftOut(HEAT_MAP, title, f"The bandwidth of pairs isn't known: {error}.")
    data = {
        "type": "heatmap",
        "z": rates,
        "colorscale": "Viridis",
        "zmin": 0,
        "zmax": max(rate for line in rates for rate in line if rate is not None),
        "colorbar": {"title": {"text": "GB/s"}, "thickness": 12},
        "hovertemplate": "rank %{y} to rank %{x}: %{z:.4g} GB/s<extra></extra>",
        "xgap": 1,
        "ygap": 1,
    }
    if ranks <= NUMBERED:
        data |= {"texttemplate": "%{z:.3g}", "textfont": {"size": 10}}
    axis = {"dtick": 1 if ranks <= 16 else 4, "fixedrange": True, "constrain": "domain"}
    layout = {
        "xaxis": axis | {"title": {"text": "to rank"}},
        "yaxis": axis | {"title": {"text": "from rank"}, "autorange": "reversed"},
    }
    known = ", ".join(sorted(sources))
    some = (
        f" The first {ranks} of {len(cluster.devices)} ranks."
        if ranks < len(cluster.devices)
        else ""
    )
    rows = [
        (str(a), *("-" if rate is None else f"{rate:.4g}" for rate in rates[a]))
        for a in range(ranks)
    ]
    flat = [rate for line in rates for rate in line if rate is not None]
    return Figure(
        HEAT_MAP,
        title,
        f"Heat map of {ranks} by {ranks} ranks, from {min(flat):.3g} to {max(flat):.3g} GB/s",
        f"One message of 64 MiB at a time ({known}): {min(flat):.3g} to {max(flat):.3g} GB/s."
        f"{some}",
        [data],
        layout,
        Table(("from \\ to", *map(str, range(ranks))), rows),
        height=400,
    )
