"""The space of plans: enumeration against brute force, reasons, placements."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditplan.planner.network.topology import Topology
from ditplan.planner.space.enumerate import baseline_of, enumerate_space, legal_meshes, why_illegal
from ditplan.planner.space.placement import placements
from ditplan.profiles.backends import find_backend
from ditplan.profiles.capabilities import Capabilities
from ditplan.profiles.catalog import find_model
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.mesh import AXES, Mesh, placement_of
from tests.unit.planner_factories import WORKLOAD, a_cluster, sd3_like

NATIVE = find_backend("native")
WIDE = Capabilities(
    name="wide",
    axes=("cfg", "pipefusion", "ring", "ulysses"),
    modes=("eager",),
    cpu_modes=("eager",),
    families=None,
    runs="never",
)


@settings(max_examples=40)
@given(
    gpus=st.integers(1, 12),
    heads=st.integers(1, 6),
    passes=st.integers(1, 3),
    text=st.integers(0, 5),
    height=st.sampled_from([16, 32, 64]),
    exactly=st.booleans(),
    capabilities=st.sampled_from([NATIVE.capabilities, WIDE]),
)
def test_enumeration_equals_brute_force(
    gpus: int,
    heads: int,
    passes: int,
    text: int,
    height: int,
    exactly: bool,
    capabilities: Capabilities,
) -> None:
    spec = sd3_like(heads)
    workload = WORKLOAD.model_copy(
        update={"height": height, "width": 32, "passes": passes, "text_tokens": text}
    )
    legal, dropped = legal_meshes(spec, workload, gpus, capabilities, exactly=exactly)
    expected, others = set(), 0
    for degrees in itertools.product(range(1, gpus + 1), repeat=len(capabilities.exact_axes)):
        mesh = Mesh(**dict(zip(capabilities.exact_axes, degrees, strict=True)))
        if mesh.size > gpus or (exactly and mesh.size != gpus):
            continue
        if mesh.dp > 1:
            continue  # of one picture not even tried
        tokens = (height // 16) * 2
        if (
            mesh.cfg <= passes
            and mesh.ulysses <= heads
            and mesh.pipefusion <= 24
            and mesh.ring * mesh.ulysses <= tokens
            and (text == 0 or mesh.ring * mesh.ulysses <= text)
        ):
            expected.add(mesh)
        else:
            others += 1
    assert set(legal) == expected
    assert len(legal) == len(expected)
    assert sum(dropped.values()) == others


def test_uneven_heads_and_tokens_are_legal() -> None:
    assert why_illegal(Mesh(ulysses=5), sd3_like(24), WORKLOAD, 5, NATIVE) is None
    assert why_illegal(Mesh(ring=7), sd3_like(24), WORKLOAD, 7, NATIVE) is None


def test_pins_keep_their_degree() -> None:
    legal, _ = legal_meshes(
        sd3_like(), WORKLOAD, 8, NATIVE.capabilities, pins={"ulysses": 2, "cfg": 1}
    )
    assert {(mesh.cfg, mesh.ulysses) for mesh in legal} == {(1, 2)}
    assert {mesh.ring for mesh in legal} == {1, 2, 3, 4}


@pytest.mark.parametrize(
    ("mesh", "gpus", "words"),
    [
        (Mesh(cfg=2, ulysses=3), 8, "must multiply to 8, such as cfg=2 ulysses=4"),
        (Mesh(cfg=3), 3, "cfg is 3, but sd3-like has 2 passes a step: use at most 2"),
        (Mesh(ulysses=25), None, "has 24 attention heads: use at most 24"),
        (Mesh(ring=400), None, "has 333 text tokens: use at most 333"),
        (Mesh(pipefusion=2), 2, "only exact plans are allowed: use quality=safe"),
        (Mesh(dp=2), 2, "dp is 2, but sd3-like has 1 pictures a batch: use at most 1"),
    ],
)
def test_an_illegal_mesh_is_told_what_would_be_right(
    mesh: Mesh, gpus: int | None, words: str
) -> None:
    why = why_illegal(mesh, sd3_like(), WORKLOAD, gpus, NATIVE)
    assert why is not None
    assert words in why
    assert "\n" not in why


def test_cfg_without_guidance_says_so() -> None:
    workload = WORKLOAD.model_copy(update={"passes": 1})
    why = why_illegal(Mesh(cfg=2), sd3_like(), workload, 2, NATIVE)
    assert why is not None
    assert "guidance is off" in why


def test_cfg_says_nothing_of_guidance_to_a_model_that_takes_its_scale_as_an_input() -> None:
    flux = find_model("flux-dev")
    why = why_illegal(Mesh(cfg=2), flux, flux.defaults, 2, NATIVE)
    assert why == "cfg is 2, but flux-dev has 1 passes a step: use at most 1"


def test_usual_placement_is_rank_order() -> None:
    assert placement_of(Mesh(cfg=2, ring=2, ulysses=3)) == tuple(range(12))


@given(st.permutations(AXES))
def test_each_order_names_every_rank_once_and_neighbours_along_its_last_axis(
    order: list[str],
) -> None:
    mesh = Mesh(cfg=2, ring=3, ulysses=2)
    placement = placement_of(mesh, order)
    assert sorted(placement) == list(range(12))
    last = next(axis for axis in reversed(order) if getattr(mesh, axis) > 1)
    for group in mesh.groups(placement, (last,)):
        assert list(group) == list(range(group[0], group[0] + len(group)))


def test_placements_that_a_uniform_switch_cannot_tell_apart_are_one() -> None:
    assert len(placements(Mesh(cfg=2, ulysses=4), Topology(a_cluster(devices=8)))) == 1


def test_placements_that_differ_across_hosts_are_kept() -> None:
    topology = Topology(a_cluster(hosts=2, devices=4))
    found = {placement for _, placement in placements(Mesh(cfg=2, ulysses=4), topology)}
    assert found == {(0, 1, 2, 3, 4, 5, 6, 7), (0, 2, 4, 6, 1, 3, 5, 7)}


def test_candidates_are_distinct_and_on_the_first_ranks() -> None:
    topology = Topology(a_cluster(hosts=2, devices=4))
    space = enumerate_space(sd3_like(), WORKLOAD, topology, 8, NATIVE)
    assert len(set(space.candidates)) == len(space.candidates)
    for candidate in space.candidates:
        assert sorted(candidate.placement) == list(range(candidate.mesh.size))


@pytest.mark.parametrize(
    ("hosts", "passes", "heads", "expected"),
    [
        (1, 2, 24, Mesh(cfg=2, ulysses=4)),
        (1, 1, 24, Mesh(ulysses=8)),
        (2, 2, 24, Mesh(cfg=2, ulysses=8)),
        (2, 1, 24, Mesh(ring=2, ulysses=8)),
        (1, 1, 6, Mesh(ring=4, ulysses=2)),
    ],
)
def test_rule_of_thumb_is_what_users_choose(
    hosts: int, passes: int, heads: int, expected: Mesh
) -> None:
    spec = sd3_like(heads)
    workload = WORKLOAD.model_copy(update={"passes": passes})
    topology = Topology(a_cluster(hosts=hosts, devices=8))
    space = enumerate_space(spec, workload, topology, 8 * hosts, NATIVE)
    baseline = baseline_of(space.candidates, spec, workload, topology)
    assert baseline == Configuration(expected, tuple(range(8 * hosts)))
