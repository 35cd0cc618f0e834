"""Groups of mesh axes, collectives in them, and how long these take: on real CPU ranks."""

import pytest
import torch
import torch.distributed as dist

from ditplan.planner.network.link_classes import link_class
from ditplan.planner.network.topology import Topology
from ditplan.profiles.cluster import ClusterProfile
from ditplan.profiles.mesh import AXES, Mesh
from ditplan.runtime.collectives import all_gather_uneven
from ditplan.runtime.groups import RankContext
from ditplan.runtime.profiling.cluster_profiler import (
    OPERATIONS,
    AxisShape,
    axis_shapes,
    can_write_within_groups,
    measure_axis,
    profile_cluster,
)
from ditplan.runtime.ranks.pool import RankError, RankPool


def gather_shares(
    context: RankContext, placement: tuple[int, ...], sizes: tuple[int, ...], dim: int
) -> torch.Tensor | None:
    group = context.groups.axis_group(Mesh(ulysses=len(sizes)), placement, ("ulysses",))
    if group is None:
        return None
    whole = torch.arange(2 * sum(sizes) * 3.0).reshape(2, sum(sizes), 3).movedim(1, dim)
    share = torch.split(whole, list(sizes), dim)[group.index]
    return all_gather_uneven(share, dim, sizes, group) - whole


def groups_of_axis(
    context: RankContext, mesh: Mesh, placement: tuple[int, ...], axes: tuple[str, ...]
) -> tuple[tuple[int, ...], int, tuple[int, ...], list[int]] | None:
    axis = context.groups.axis_group(mesh, placement, axes)
    if axis is None:
        return None
    gathered = torch.empty(axis.size, dtype=torch.long)
    dist.all_gather_into_tensor(gathered, torch.tensor([context.rank]), group=axis.group)
    return axis.ranks, axis.index, axis.order, gathered.tolist()


def count_new_groups(context: RankContext, meshes: list[Mesh]) -> int:
    def ask() -> None:
        for mesh in meshes:
            for axes in (("cfg",), ("ring",), ("ulysses",), ("ring", "ulysses")):
                context.groups.axis_group(mesh, tuple(range(mesh.size)), axes)

    ask()
    before = len(dist.distributed_c10d._world.pg_map)
    for _ in range(20):
        ask()
    return len(dist.distributed_c10d._world.pg_map) - before


def test_axis_groups_follow_mesh_coordinates_under_any_placement(ranks: RankPool) -> None:
    mesh, placement = Mesh(ring=2, ulysses=2), (0, 3, 2, 1)
    assert ranks.run(groups_of_axis, mesh, placement, ("ulysses",), timeout_s=600) == [
        ((0, 3), 0, (0, 1), [0, 3]),
        ((2, 1), 1, (1, 0), [1, 2]),
        ((2, 1), 0, (1, 0), [1, 2]),
        ((0, 3), 1, (0, 1), [0, 3]),
    ]
    both = ranks.run(groups_of_axis, mesh, placement, ("ring", "ulysses"), timeout_s=600)
    assert [result[:3] for result in both if result] == [
        ((0, 3, 2, 1), 0, (0, 3, 2, 1)),
        ((0, 3, 2, 1), 3, (0, 3, 2, 1)),
        ((0, 3, 2, 1), 2, (0, 3, 2, 1)),
        ((0, 3, 2, 1), 1, (0, 3, 2, 1)),
    ]


def test_ranks_outside_a_mesh_and_axes_of_one_have_no_group(ranks: RankPool) -> None:
    assert ranks.run(groups_of_axis, Mesh(cfg=2), (1, 3), ("cfg",), timeout_s=600) == [
        None,
        ((1, 3), 0, (0, 1), [1, 3]),
        None,
        ((1, 3), 1, (0, 1), [1, 3]),
    ]
    assert ranks.run(groups_of_axis, Mesh(cfg=2), (1, 3), ("ring",), timeout_s=600) == [None] * 4


def test_plan_after_plan_makes_no_new_process_groups(ranks: RankPool) -> None:
    meshes = [
        Mesh(cfg=2, ulysses=2),
        Mesh(ring=4),
        Mesh(ring=2, ulysses=2),
        Mesh(cfg=2),
        Mesh(ulysses=3),
    ]
    assert ranks.run(count_new_groups, meshes, timeout_s=600) == [0] * 4


def test_a_placement_beyond_the_world_is_refused(ranks: RankPool) -> None:
    with pytest.raises(RankError, match="the placement names rank 7, there are 4 ranks"):
        ranks.run(groups_of_axis, Mesh(cfg=2), (0, 7), ("cfg",), timeout_s=600)


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize(
    ("placement", "sizes"),
    [((0, 1, 2, 3), (2, 2, 2, 2)), ((0, 1, 2, 3), (84, 83, 83, 83)), ((3, 0, 2), (1, 5, 2))],
)
def test_uneven_shares_are_gathered_in_the_order_of_the_mesh(
    ranks: RankPool, placement: tuple[int, ...], sizes: tuple[int, ...], dim: int
) -> None:
    differences = ranks.run(gather_shares, placement, sizes, dim, timeout_s=600)
    assert [rank for rank, found in enumerate(differences) if found is not None] == sorted(
        placement
    )
    assert all(not found.any() for found in differences if found is not None)


@pytest.mark.parametrize("world_size", range(1, 9))
def test_every_axis_of_every_mesh_has_its_shape_measured(world_size: int) -> None:
    shapes = {shape.groups for shape in axis_shapes(world_size)}
    meshes = [
        Mesh(cfg=cfg, ring=ring, ulysses=ulysses)
        for cfg in range(1, 4)
        for ring in range(1, world_size + 1)
        for ulysses in range(1, world_size + 1)
        if cfg * ring * ulysses <= world_size
    ]
    for mesh in meshes:
        for axis in AXES:
            groups = mesh.groups(tuple(range(mesh.size)), (axis,))
            assert len(groups[0]) == 1 or tuple(groups) in shapes, (mesh, axis)


def test_all_ranks_time_the_same_sizes_equally_often_and_unused_ones_time_nothing(
    ranks: RankPool,
) -> None:
    sizes = [4096, 8192, 16384]
    by_rank = ranks.run(
        measure_axis, AxisShape(3, 3, 1), "send_recv", sizes, budget_s=3.0, timeout_s=600
    )
    for point in zip(*by_rank, strict=True):
        assert len({size for size, _ in point}) == 1
        assert len({len(seconds) for _, seconds in point}) == 1
    assert [size for size, _ in by_rank[0]] == sizes
    assert min(seconds for _, taken in by_rank[0] for seconds in taken) > 0


@pytest.mark.parametrize("shape", [AxisShape(4, 2, 2), AxisShape(3, 3, 1)])
def test_no_group_of_cpu_ranks_can_write_to_its_peers(ranks: RankPool, shape: AxisShape) -> None:
    found = ranks.run(can_write_within_groups, shape, timeout_s=600)
    assert found == [rank >= shape.used for rank in range(4)]


def test_a_cluster_profile_has_every_operation_on_every_group_and_survives_its_file(
    ranks: RankPool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    said: list[str] = []
    profile = profile_cluster(ranks, "here", quick=True, say=said.append)
    found = {(t.operation, t.size, t.stride, t.groups) for t in profile.collectives}
    shapes = [(2, 1, 1), (3, 1, 1), (2, 1, 2), (2, 2, 2), (4, 1, 1)]
    # CPU ranks can't write to each other's memory, so no exchange by writes is among them
    assert found == {(operation, *shape) for operation in OPERATIONS for shape in shapes}
    for table in profile.collectives:
        sizes = [point.bytes for point in table.points]
        assert sizes[0] == 4096
        assert sizes == sorted(set(sizes))
        assert all(point.median_s <= point.p95_s for point in table.points)
    assert [device.kind for device in profile.devices] == ["cpu"] * 4
    assert profile.link_kinds == ("memory",)
    assert len(set(profile.devices)) == 1
    assert profile.software["torch"] == torch.__version__
    assert any("stride 2" in line for line in said)
    path = tmp_path_factory.mktemp("profile") / "cluster.json"
    assert ClusterProfile.load(profile.save(path)) == profile


def test_hosts_have_links_of_their_own_and_one_to_the_network(ranks: RankPool) -> None:
    said: list[str] = []
    profile = profile_cluster(
        ranks, "two", hosts={"a": 2, "b": 2}, budget_s=0.1, quick=True, say=said.append
    )
    assert [(host.name, len(host.devices)) for host in profile.hosts] == [("a", 2), ("b", 2)]
    assert profile.link_kinds == ("ethernet", "memory")
    topology = Topology(profile)
    found = [link_class(topology, *pair) for pair in ((0, 1), (2, 3), (0, 2), (1, 3))]
    assert found == ["memory", "memory", "ethernet", "ethernet"]
    # all of it is one machine, whose memory is faster than this by far
    assert all(1e6 < link.bytes_per_s < 1e12 for link in profile.links)
    assert "links: 5 exchanges in 3 rounds" in said
    # so little time has room for one kind of group at least, and says what it lacks
    assert len(profile.collectives) >= len(OPERATIONS)
    assert any("kinds of group weren't measured, for want of time" in w for w in profile.warnings)


def test_a_single_rank_has_a_profile_without_links() -> None:
    with RankPool(None, 1, "cpu") as pool:
        profile = profile_cluster(pool, "alone", quick=True)
    assert (len(profile.devices), profile.links, profile.collectives) == (1, (), ())
