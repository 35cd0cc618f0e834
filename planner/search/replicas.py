"""Copies of a plan that run at once: where they fit, and by how much they slow each other down on
the links they share.
"""

from collections.abc import Sequence
from dataclasses import replace

from ditplan.planner.cost_model import CostModel
from ditplan.planner.memo import KeyTuple
from ditplan.planner.network.groups import AxisGroups, Groups, listed, wanted
from ditplan.planner.network.tables import Group
from ditplan.planner.network.topology import Estimate, Topology
from ditplan.planner.search.pricing import cost_model_of
from ditplan.planner.search.ranking import PricedCandidate
from ditplan.planner.task import Task
from ditplan.profiles.cluster import ClusterProfile, Operation


class SharedTopology(Topology):
    """A cluster on which copies of the same plan run at once, each exchanging when the others do.

    Groups are those of the first copy.
    """

    def __init__(self, alone: Topology, starts: Sequence[int]) -> None:
        """Takes the first rank of each copy."""
        super().__init__(alone.cluster)
        self._alone, self._starts = alone, starts

    def collective_s(
        self, operation: Operation, bytes_per_rank: float, groups: Sequence[Group] | AxisGroups
    ) -> Estimate:
        """Duration of an operation run by all the groups of all copies at once."""
        return self._alone.collective_s(operation, bytes_per_rank, self._of_all(groups))

    def is_measured(self, operation: Operation, groups: Sequence[Group] | AxisGroups) -> bool:
        """Whether there is a table of an operation on the groups of all copies."""
        return self._alone.is_measured(operation, self._of_all(groups))

    def hops_s(
        self, bytes_per_rank: float, lines: Sequence[Group] | AxisGroups
    ) -> tuple[Estimate, ...]:
        """Durations of the hops of the lines of all copies."""
        return self._alone.hops_s(bytes_per_rank, self._of_all(lines))

    def _of_all(self, groups: Sequence[Group] | AxisGroups) -> Groups:
        if isinstance(groups, AxisGroups):
            back_to_back = tuple(groups.ranks * copy for copy in range(len(self._starts)))
            if tuple(self._starts) == back_to_back:
                return replace(groups, ranks=groups.ranks * len(self._starts))
        alone = listed(wanted(groups))
        return KeyTuple(
            tuple(start + rank for rank in group) for start in self._starts for group in alone
        )


def replica_starts(cluster: ClusterProfile, size: int, gpus: int) -> tuple[int, ...]:
    """The first ranks of as many copies of a plan of `size` GPUs as `gpus` of a cluster hold.

    Each lies over hosts and kinds of device as the first one does: none crosses hosts that
    needn't, and what is priced or measured on the first ranks holds for all.
    """
    places = [
        (number, device.name)
        for number, host in enumerate(cluster.hosts)
        for device in host.devices
    ][:gpus]

    def is_alike(start: int) -> bool:
        moved = places[start][0] - places[0][0]
        return all(
            (number + moved, name) == places[start + rank]
            for rank, (number, name) in enumerate(places[:size])
        )

    starts, start = [], 0
    while start + size <= len(places):
        if is_alike(start):
            starts.append(start)
            start += size
        else:
            start += 1
    return tuple(starts)


def with_replicas(
    task: Task, topology: Topology, priced: Sequence[PricedCandidate]
) -> list[PricedCandidate]:
    """The candidates with the number of their replicas, and how much slower one is while all
    run.
    """
    gpus = task.gpus or topology.ranks
    sizes = {ranked.configuration.mesh.size for ranked in priced}
    starts = {size: replica_starts(topology.cluster, size, gpus) for size in sizes}
    models = {
        size: cost_model_of(task, SharedTopology(topology, first))
        for size, first in starts.items()
        if size > 1 and len(first) > 1
    }
    return [
        replace(
            ranked,
            replicas=len(starts[ranked.configuration.mesh.size]),
            slowdown=_slowdown(ranked, models.get(ranked.configuration.mesh.size), task),
        )
        for ranked in priced
    ]


def _slowdown(ranked: PricedCandidate, model: CostModel | None, task: Task) -> float:
    if model is None or ranked.too_big:
        return 1.0
    together_s = model.price(ranked.configuration, task.workload).latency_s
    return max(1.0, together_s / ranked.prediction.latency_s)
