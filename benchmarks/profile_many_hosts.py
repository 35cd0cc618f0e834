"""A simulated profile of many hosts: how many measurements there are, and how long they take.

    python -m benchmarks.profile_many_hosts --hosts 128 --gpus 8

Nothing is measured: exchanges and collectives take what the links of a cluster on paper say, on
which a host is slow. The rounds, the groups and what becomes of them are those of `profile`.
"""

import argparse
import sys
from datetime import UTC, datetime

from benchmarks.machine import described
from ditplan.planner.network.topology import Topology
from ditplan.profiles.cluster import ClusterProfile, LinkKind, Operation
from ditplan.profiles.new_cluster import new_cluster
from ditplan.runtime.profiling.cluster_profiler import (
    BUDGET_S,
    FEWEST_TIMINGS,
    OPERATIONS,
    SHAPE_BUDGET_S,
    AxisShape,
    axis_shapes,
    representative_shapes,
    sizes_of,
)
from ditplan.runtime.profiling.link_warnings import link_warnings
from ditplan.runtime.profiling.measured_links import HostClaims, links_of, speeds_by_host
from ditplan.runtime.profiling.pair_rounds import (
    HostRanks,
    Pair,
    Round,
    hosts_in_order,
    representatives,
    rounds_of,
)
from ditplan.runtime.profiling.pair_sweep import SIZES, TIMINGS, PairSpeed, of_kind

TASK_S = 0.05
"""Of a round trip to all ranks, and GROUP_S of making a process group: assumed."""

GROUP_S = 0.02
SLOW_HOST, SLOWNESS = "node5", 10.0


def exchange_s(truth: Topology, hosts: list[HostRanks], one: Round, size: int) -> dict[Pair, float]:
    """Seconds of each pair of a round at a size: links are shared by pairs of one host alone, as
    all hosts are alike but the slow one.
    """
    owner = {rank: host for host in hosts for rank in host.ranks}
    at_once: dict[tuple[str, str], int] = {}
    for a, b in one.pairs:
        key = owner[a].name, owner[b].name
        at_once[key] = at_once.get(key, 0) + 1
    known: dict[tuple[int, int, bool, int], float] = {}
    found = {}
    for a, b in one.pairs:
        mine, other = owner[a], owner[b]
        count, is_slow = at_once[mine.name, other.name], SLOW_HOST in (mine.name, other.name)
        key = (a - mine.first, b - other.first, mine == other, count)
        if key not in known:
            pairs = [(i, other.size + i) for i in range(count)]
            near = [(a - mine.first, b - other.first)]
            groups = near if mine == other else pairs
            known[key] = truth.collective_s("send_recv", size, groups).seconds
        found[a, b] = known[key] * (SLOWNESS if is_slow and mine != other else 1.0)
    return found


def as_found(_: str, kind: LinkKind) -> LinkKind:
    """NCCL may use all there is."""
    return kind


def shape_s(truth: Topology, shape: AxisShape) -> float:
    """Seconds of all operations of a shape: as the profiler spends them."""
    share_s = SHAPE_BUDGET_S / len(OPERATIONS)
    return sum(operation_s(truth, shape, operation, share_s) for operation in OPERATIONS)


def operation_s(truth: Topology, shape: AxisShape, operation: Operation, share_s: float) -> float:
    """At least some timings of each size, three before, and no new size beyond the share."""
    total = TASK_S + GROUP_S * len(shape.groups)
    round_s = spent_s = 0.0
    for size in sizes_of("cuda", operation, 2):
        once = truth.collective_s(operation, size, shape.groups).seconds
        spent_s += 3 * once
        round_s += once
        if spent_s + FEWEST_TIMINGS * round_s > share_s:
            break
    return total + spent_s + FEWEST_TIMINGS * round_s


def simulated(hosts_count: int, gpus: int) -> str:
    """The report of one size of cluster."""
    sizes = {f"node{place}": gpus for place in range(hosts_count)}
    hosts = list(hosts_in_order(sizes))
    truth = Topology(new_cluster(f"{hosts_count}x{gpus}", "h100-sxm", "nvlink", "8xib400"))
    small = Topology(new_cluster(f"2x{gpus}", "h100-sxm", "nvlink", "8xib400"))
    claims = {
        name: HostClaims(
            "cuda",
            {},
            gpu="NVIDIA H100 80GB HBM3",
            pcie_bytes_per_s=63e9,
            nvlinks=18,
            has_rdma=True,
        )
        for name in sizes
    }
    rounds = rounds_of(hosts, dict.fromkeys(sizes, representatives(gpus, {})))
    links_s, speeds = 0.0, []
    for one in rounds:
        by_size = {size: exchange_s(small, hosts, one, size) for size in SIZES["cuda"]}
        links_s += sum((1 + TIMINGS) * max(found.values()) for found in by_size.values())
        first, last = by_size[SIZES["cuda"][0]], by_size[SIZES["cuda"][-1]]
        speeds.append(
            {pair: PairSpeed(first[pair], SIZES["cuda"][-1] / last[pair]) for pair in one.pairs}
        )
    by_host = speeds_by_host(
        hosts, *(of_kind(rounds, speeds, about) for about in ("inside", "flow", "host"))
    )
    links = tuple(links_of(hosts, claims, by_host, as_found))
    found = Topology(ClusterProfile(**dict(truth.cluster) | {"links": links}))
    exchanges = sum(len(one.pairs) // (gpus if one.about == "host" else 1) for one in rounds)
    ranks = hosts_count * gpus
    shapes = representative_shapes(ranks, gpus)
    collectives_s = sum(shape_s(truth, shape) for shape in shapes)
    pair = (0, gpus), (0, 1)
    rates = [
        f"{one.collective_s('send_recv', 2**30, [ends]).seconds:.4f}"
        for ends in pair
        for one in (truth, found)
    ]
    return "\n".join(
        [
            f"{hosts_count} hosts x {gpus} GPUs: {ranks} ranks",
            f"  links: {exchanges} exchanges of hosts in {len(rounds)} rounds, {links_s:.2f} s; "
            f"all pairs of hosts {hosts_count * (hosts_count - 1) // 2}, of GPUs "
            f"{ranks * (ranks - 1) // 2}",
            f"  collectives: {len(shapes)} kinds of group x {len(OPERATIONS)} operations of "
            f"{len(axis_shapes(ranks))} that meshes can have, {collectives_s:.0f} s unbounded; "
            f"begun for {10 * BUDGET_S['cuda']:.0f} s at most, or --budget",
            f"  1 GiB to another host: {rates[0]} s in truth, {rates[1]} as found; within one: "
            f"{rates[2]}, {rates[3]}",
            *(f"  warning: {text}" for text in link_warnings(claims, by_host)),
        ]
    )


def main() -> None:
    """Simulates clusters of growing size up to the one that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hosts", type=int, default=128)
    parser.add_argument("--gpus", type=int, default=8)
    asked = parser.parse_args()
    command = f"python -m benchmarks.profile_many_hosts --hosts {asked.hosts} --gpus {asked.gpus}"
    sys.stdout.write(f"{command}, {datetime.now(UTC):%Y-%m-%d}\n{described('networkx')}\n\n")
    hosts = 8
    while hosts < asked.hosts:
        sys.stdout.write(simulated(hosts, asked.gpus) + "\n")
        sys.stdout.flush()
        hosts *= 4
    sys.stdout.write(simulated(asked.hosts, asked.gpus) + "\n")


if __name__ == "__main__":
    main()
