"""What is asked to be measured: the busiest rank's share of every mesh, cheap points first."""

from hypothesis import given, settings
from hypothesis import strategies as st

from ditplan.planner.cost.profile_points import grid_points, wanted_points
from ditplan.planner.cost.roofline import block_size
from ditplan.planner.cost.share import point_share, share_of
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import Mode, PointRequest
from ditplan.profiles.workload import Workload
from tests.unit.planner_factories import WORKLOAD, sd3_like

SPEC = sd3_like()
EAGER: tuple[Mode, ...] = ("eager",)
ALL: tuple[Mode, ...] = ("eager", "compile", "graph", "compile+graph")
MESHES = st.sets(
    st.builds(Mesh, cfg=st.integers(1, 2), ring=st.integers(1, 4), ulysses=st.integers(1, 5)),
    min_size=1,
    max_size=6,
)
WORKLOADS = st.builds(
    Workload,
    height=st.sampled_from([256, 512, 768, 1024, 2048]),
    width=st.sampled_from([256, 512, 1024]),
    steps=st.just(20),
    passes=st.just(2),
    text_tokens=st.sampled_from([0, 77, 333]),
    batch=st.integers(1, 3),
)


def size_of(request: PointRequest) -> tuple[int, int, int, int]:
    """What a measurement of the request depends on."""
    return (request.batch, request.image_share, request.text_share, request.key_tokens)


def work_of(request: PointRequest) -> float:
    """Rows times their widths and keys: the order in which points take time."""
    rows = request.batch * (request.image_share + request.text_share)
    return rows * (4096 + request.key_tokens)


@settings(max_examples=60)
@given(meshes=MESHES, workload=WORKLOADS)
def test_the_busiest_rank_of_every_mesh_is_asked_for_with_all_keys(
    meshes: set[Mesh], workload: Workload
) -> None:
    sizes = {size_of(request) for request in wanted_points(SPEC, workload, meshes, EAGER)}
    whole = SPEC.image_tokens(workload) + workload.text_tokens
    for mesh in meshes:
        share = share_of(mesh, SPEC, workload)
        assert (share.batch, share.tokens["image"], share.tokens["text"], whole) in sizes


@settings(max_examples=60)
@given(meshes=MESHES, workload=WORKLOADS)
def test_one_round_of_a_ring_is_asked_for(meshes: set[Mesh], workload: Workload) -> None:
    sizes = {size_of(request) for request in wanted_points(SPEC, workload, meshes, EAGER)}
    for mesh in meshes:
        share = share_of(mesh, SPEC, workload)
        own = share.tokens["image"] + share.tokens["text"]
        assert (share.batch, share.tokens["image"], share.tokens["text"], own) in sizes


@settings(max_examples=60)
@given(meshes=MESHES, workload=WORKLOADS)
def test_cheapest_first_and_nothing_twice(meshes: set[Mesh], workload: Workload) -> None:
    for requests in (
        wanted_points(SPEC, workload, meshes, EAGER),
        grid_points(SPEC, workload, EAGER),
    ):
        work = [work_of(request) for request in requests]
        assert work == sorted(work)
        assert len(set(requests)) == len(requests)


def test_smaller_pictures_are_asked_for_where_the_whole_one_takes_too_long() -> None:
    tokens = {request.image_tokens for request in wanted_points(SPEC, WORKLOAD, {Mesh()}, EAGER)}
    assert tokens == {4096, 2048, 1024, 512}


def test_modes_are_asked_for_at_the_sizes_of_plans_only() -> None:
    asked = wanted_points(SPEC, WORKLOAD, {Mesh(), Mesh(ulysses=2)}, ALL)
    assert {r.modes for r in asked if r.image_tokens == 4096} == {ALL}
    assert {r.modes for r in asked if r.image_tokens < 4096} == {EAGER}


def test_no_shape_is_asked_for_twice_when_a_smaller_picture_is_the_same() -> None:
    tiny = WORKLOAD.model_copy(update={"height": 16, "width": 64})
    asked = wanted_points(SPEC, tiny, {Mesh()}, ALL)
    assert len({size_of(request) for request in asked}) == len(asked)


def test_a_mesh_with_more_cfg_ranks_than_samples_asks_for_nothing_of_its_own() -> None:
    one_pass = WORKLOAD.model_copy(update={"passes": 1})
    without = wanted_points(SPEC, one_pass, {Mesh()}, EAGER)
    assert wanted_points(SPEC, one_pass, {Mesh(), Mesh(cfg=2)}, EAGER) == without


def test_what_is_asked_for_is_what_pricing_looks_up() -> None:
    """Measured as asked, ulysses' and ring's blocks lie on the grid point and not beside it."""
    block = SPEC.blocks[0]
    asked = {
        block_size(block, point_share(*size_of(request)))
        for request in wanted_points(SPEC, WORKLOAD, {Mesh(cfg=2), Mesh(cfg=2, ring=4)}, EAGER)
    }
    for mesh in (Mesh(cfg=2), Mesh(cfg=2, ring=4)):
        rows, pairs = block_size(block, share_of(mesh, SPEC, WORKLOAD))
        near = [found for known, found in asked if known == rows]
        assert any(abs(found / pairs - 1) < 0.02 for found in near)


@given(WORKLOADS)
def test_the_grid_covers_tokens_in_steps_of_two_and_both_batches(workload: Workload) -> None:
    grid = grid_points(SPEC, workload, EAGER)
    whole = {request.image_tokens for request in grid if request.ranks == 1 and request.batch == 1}
    unit = SPEC.pixels_per_token
    for shrink in (1, 2, 4, 8):
        rows = max(1, workload.height // shrink // unit)
        assert rows * (workload.width // unit) in whole
    assert {request.batch for request in grid} == {1, 2}
    for ranks in (1, 2, 4, 8):
        keys = {request.key_ranks for request in grid if request.ranks == ranks}
        assert keys == {1, ranks}
