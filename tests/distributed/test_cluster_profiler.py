"""Measuring real collectives between CPU ranks, and putting shares of uneven sizes together."""

import time

import pytest
import torch

from ditplan.profiles.cluster import ClusterProfile
from ditplan.profiles.mesh import AXES, Mesh
from ditplan.runtime.cluster_profiler import (
    OPERATIONS,
    AxisShape,
    axis_shapes,
    measure_axis,
    profile_cluster,
)
from ditplan.runtime.collectives import all_gather_uneven
from ditplan.runtime.groups import RankContext
from ditplan.runtime.launch import RankPool


def gather_shares(
    context: RankContext, placement: tuple[int, ...], sizes: tuple[int, ...], dim: int
) -> torch.Tensor | None:
    group = context.groups.axis_group(Mesh(ulysses=len(sizes)), placement, ("ulysses",))
    if group is None:
        return None
    whole = torch.arange(2 * sum(sizes) * 3.0).reshape(2, sum(sizes), 3).movedim(1, dim)
    share = torch.split(whole, sizes, dim)[group.index]
    return all_gather_uneven(share, dim, sizes, group) - whole


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize(
    ("placement", "sizes"),
    [((0, 1, 2, 3), (2, 2, 2, 2)), ((0, 1, 2, 3), (84, 83, 83, 83)), ((3, 0, 2), (1, 5, 2))],
)
def test_uneven_shares_are_gathered_in_the_order_of_the_mesh(
    ranks: RankPool, placement: tuple[int, ...], sizes: tuple[int, ...], dim: int
) -> None:
    differences = ranks.run(gather_shares, placement, sizes, dim, timeout_s=20)
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
        measure_axis, AxisShape(3, 3, 1), "send_recv", sizes, budget_s=0.2, timeout_s=30
    )
    for point in zip(*by_rank, strict=True):
        assert len({size for size, _ in point}) == 1
        assert len({len(seconds) for _, seconds in point}) == 1
    assert [size for size, _ in by_rank[0]] == sizes
    assert min(seconds for _, taken in by_rank[0] for seconds in taken) > 0


def test_a_cluster_profile_has_every_operation_on_every_group_and_survives_its_file(
    ranks: RankPool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    said: list[str] = []
    began = time.monotonic()
    profile = profile_cluster(ranks, "here", quick=True, say=said.append)
    assert time.monotonic() - began < 25
    found = {(t.operation, t.size, t.stride, t.groups) for t in profile.collectives}
    shapes = [(2, 1, 1), (3, 1, 1), (2, 1, 2), (2, 2, 2), (4, 1, 1)]
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


def test_a_single_rank_has_a_profile_without_links() -> None:
    with RankPool(None, 1, "cpu") as pool:
        profile = profile_cluster(pool, "alone", quick=True)
    assert (len(profile.devices), profile.links, profile.collectives) == (1, (), ())
