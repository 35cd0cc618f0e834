"""Mesh groups against an oracle that compares every pair of ranks."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ditplan.profiles.mesh import AXES, Mesh

meshes = st.builds(Mesh, **{axis: st.integers(1, 3) for axis in AXES})
axis_sets = st.sets(st.sampled_from(AXES)).map(lambda axes: tuple(sorted(axes)))


@st.composite
def placed_meshes(draw: st.DrawFn) -> tuple[Mesh, tuple[int, ...]]:
    mesh = draw(meshes)
    return mesh, tuple(draw(st.permutations(range(mesh.size))))


def groups_by_pairs(mesh: Mesh, placement: tuple[int, ...], axes: tuple[str, ...]) -> set[object]:
    """Ranks together whose coordinates agree along every other axis; in order of coordinates."""
    where = list(itertools.product(*(range(getattr(mesh, axis)) for axis in AXES)))
    kept = [i for i, axis in enumerate(AXES) if axis not in axes]

    def together(a: int, b: int) -> bool:
        return all(where[a][i] == where[b][i] for i in kept)

    cells = range(len(where))
    return {tuple(placement[b] for b in cells if together(a, b)) for a in cells}


@given(placed_meshes(), axis_sets)
def test_groups_equal_the_oracle(
    placed: tuple[Mesh, tuple[int, ...]], axes: tuple[str, ...]
) -> None:
    mesh, placement = placed
    assert set(mesh.groups(placement, axes)) == groups_by_pairs(mesh, placement, axes)


@given(placed_meshes(), axis_sets)
def test_groups_partition_the_ranks_evenly(
    placed: tuple[Mesh, tuple[int, ...]], axes: tuple[str, ...]
) -> None:
    mesh, placement = placed
    groups = mesh.groups(placement, axes)
    assert sorted(itertools.chain(*groups)) == list(range(mesh.size))
    assert len({len(group) for group in groups}) == 1


def test_groups_of_each_axis_of_a_placed_mesh() -> None:
    mesh, placement = Mesh(cfg=2, ring=2, ulysses=2), (0, 1, 2, 3, 4, 5, 7, 6)
    assert mesh.groups(placement, ("ulysses",)) == [(0, 1), (2, 3), (4, 5), (7, 6)]
    assert mesh.groups(placement, ("ring",)) == [(0, 2), (1, 3), (4, 7), (5, 6)]
    assert mesh.groups(placement, ("ring", "ulysses")) == [(0, 1, 2, 3), (4, 5, 7, 6)]
    assert mesh.groups(placement, ("cfg",)) == [(0, 4), (1, 5), (2, 7), (3, 6)]
    assert mesh.groups(placement, ()) == [(0,), (1,), (2,), (3,), (4,), (5,), (7,), (6,)]


def test_the_order_in_which_axes_are_named_changes_nothing() -> None:
    mesh, placement = Mesh(ring=2, ulysses=3), (5, 4, 3, 2, 1, 0)
    assert mesh.groups(placement, ("ulysses", "ring")) == mesh.groups(
        placement, ("ring", "ulysses")
    )


def test_an_unknown_axis_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"\['tp'\]; there are dp, cfg, pipefusion, ring, ulysses"):
        Mesh().groups((0,), ("tp",))


@pytest.mark.parametrize("placement", [(), (0,), (0, 0), (0, 1, 2)])
def test_a_placement_of_other_size_or_with_a_rank_twice_is_refused(
    placement: tuple[int, ...],
) -> None:
    with pytest.raises(ValueError, match="names 2 different ranks"):
        Mesh(ring=2).groups(placement, ("ring",))


@given(meshes)
def test_size_is_the_number_of_coordinates(mesh: Mesh) -> None:
    coordinates = mesh.coordinates()
    assert len(coordinates) == len(set(coordinates)) == mesh.size
    assert coordinates == sorted(coordinates)
    assert mesh.sequence_parallel == mesh.ring * mesh.ulysses


@pytest.mark.parametrize("degree", [0, -1, 1.5, "two"])
def test_a_degree_is_a_positive_whole_number(degree: object) -> None:
    with pytest.raises(ValidationError):
        Mesh.model_validate({"cfg": degree})


def test_a_mesh_can_not_be_changed() -> None:
    mesh = Mesh(cfg=2)
    with pytest.raises(ValidationError):
        mesh.cfg = 1


def test_a_mesh_reads_as_its_degrees_above_one() -> None:
    assert str(Mesh(cfg=2, ulysses=4)) == "cfg2 x ulysses4"
    assert str(Mesh()) == "one device"
