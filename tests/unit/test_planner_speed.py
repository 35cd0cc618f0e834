"""What makes planning fast changes no price and no choice: shared work, alike hosts, bounds."""

import itertools
import math
import random
import typing
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditplan.planner.cost_model import CostModel
from ditplan.planner.network.groups import AxisGroups, groups_along
from ditplan.planner.network.topology import Topology
from ditplan.planner.search.pricing import price_all, space_of
from ditplan.planner.search.ranking import PricedCandidate
from ditplan.planner.space.approximations import ApproximationPolicy
from ditplan.planner.space.candidate import Setting
from ditplan.planner.space.enumerate import evenly_staged
from ditplan.planner.task import Task
from ditplan.profiles.backends import find_backend
from ditplan.profiles.catalog import find_cluster, find_model
from ditplan.profiles.cluster import ClusterProfile, Operation
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.mesh import AXES, Mesh, axis_orders, placement_of
from ditplan.profiles.model import Mode
from ditplan.profiles.plan import Prediction
from tests.unit.planner_factories import WORKLOAD, a_cluster, a_link, a_table, sd3_like

SPEC = sd3_like()
MESHES = st.sampled_from(
    [Mesh(), Mesh(cfg=2), Mesh(ring=4), Mesh(pipefusion=3, ulysses=8), Mesh(ulysses=12)]
    + [Mesh(cfg=c, pipefusion=p, ring=r, ulysses=u) for c, p, r, u in [(2, 2, 2, 2), (2, 4, 1, 8)]]
)
FASTER = st.lists(st.floats(1, 50), min_size=6, max_size=6)


def railed(hosts: int, odd_link: bool = False) -> ClusterProfile:
    """Hosts of four devices with a NIC each that meet in rails, these in a slow spine."""
    links = []
    for host, i in itertools.product(range(hosts), range(4)):
        links.append(a_link(f"h{host}/{i}", f"h{host}/nic{i}", 50e9, "pcie"))
        links.append(a_link(f"h{host}/nic{i}", f"rail{i}", 20e9, "infiniband"))
    links += [a_link(f"rail{i}", "spine", 6e9, "infiniband") for i in range(4)]
    if odd_link:
        links.append(a_link("h0/0", "h0/unused", 1e9, "pcie"))
    return a_cluster(hosts=hosts, devices=4).model_copy(update={"links": tuple(links)})


def a_task(cluster: ClusterProfile) -> Task:
    return Task(SPEC, WORKLOAD, cluster, allowed=ApproximationPolicy())


def same(ours: Prediction, theirs: Prediction) -> bool:
    numbers = [*(ours.parts[key] - theirs.parts.get(key, 0.0) for key in ours.parts)]
    numbers += [ours.link_bytes[kind] / theirs.link_bytes[kind] - 1 for kind in ours.link_bytes]
    numbers += [ours.latency_s - theirs.latency_s, ours.setup_s - theirs.setup_s]
    return (
        max(map(abs, numbers)) < 1e-9
        and ours.memory_bytes == theirs.memory_bytes
        and ours.source == theirs.source
        and ours.parts.keys() == theirs.parts.keys()
    )


@pytest.mark.parametrize("name", ["2x8xl40-pcie-eth100", "2xh100-nvlink"])
@pytest.mark.parametrize("model", ["sd3", "wan2.1-1.3b"])
def test_prices_are_those_of_a_cost_model_that_has_priced_nothing_before(
    name: str, model: str
) -> None:
    cluster, spec = find_cluster(name), find_model(model)
    task = Task(
        spec,
        spec.defaults,
        cluster,
        gpus=min(10, len(cluster.devices)),
        allowed=ApproximationPolicy(),
    )
    ranked, _ = price_all(task, Topology(cluster))
    for found in random.Random(1).sample(ranked, min(20, len(ranked))):
        fresh = CostModel(Topology(cluster), spec)
        alone = fresh.balanced(found.configuration, spec.defaults)
        assert alone == found.configuration
        assert same(fresh.price(alone, spec.defaults), found.prediction)


@given(order=st.permutations(AXES), axes=st.sets(st.sampled_from(AXES), min_size=1))
def test_groups_kept_as_strides_are_those_of_the_placement(
    order: list[str], axes: set[str]
) -> None:
    mesh, along = Mesh(dp=2, cfg=2, pipefusion=3, ulysses=2), tuple(axes)
    listed = groups_along(mesh, order, along).listed
    assert sorted(listed) == sorted(mesh.groups(placement_of(mesh, order), along))


@settings(max_examples=60)
@given(
    order=st.permutations(AXES),
    axis=st.sampled_from([("cfg",), ("pipefusion",), ("ring",), ("ulysses",), ("ring", "ulysses")]),
    operation=st.sampled_from(["all_to_all", "all_gather", "all_reduce", "send_recv"]),
    cluster=st.sampled_from(["switched", "railed"]),
)
def test_what_is_counted_on_one_of_alike_hosts_is_what_all_messages_ask(
    order: list[str], axis: tuple[str, ...], operation: Operation, cluster: str
) -> None:
    mesh = Mesh(cfg=2, pipefusion=2, ring=4, ulysses=2)
    profile = railed(8) if cluster == "railed" else a_cluster(hosts=8, devices=4)
    groups = groups_along(mesh, order, axis)
    topology = Topology(profile)
    every = Topology(railed(8, odd_link=True)) if cluster == "railed" else topology
    assert topology.hosts_are_alike
    ours = topology.collective_s(operation, 2**22, groups).seconds
    assert math.isclose(ours, every.collective_s(operation, 2**22, groups.listed).seconds)
    moved = every.link_bytes(operation, 2**22, groups.listed)
    assert topology.link_bytes(operation, 2**22, groups) == pytest.approx(moved)
    if len(groups.runs) == 1:
        for position in range(groups.size):
            hop_s = topology.hops_s(2**22, groups)[position].seconds
            assert math.isclose(hop_s, every.hops_s(2**22, groups.listed)[position].seconds)
            hop_bytes = every.hop_bytes(2**22, groups.listed, position)
            assert topology.hop_bytes(2**22, groups, position) == pytest.approx(hop_bytes)


@pytest.mark.parametrize(
    "change", [{"bytes_per_s": 1e9}, {"latency_s": 1.0}, {"kind": "pcie"}, {"b": "network"}]
)
def test_hosts_that_differ_in_one_link_are_not_alike(change: dict[str, object]) -> None:
    cluster = a_cluster(hosts=3, devices=2)
    first, *others = cluster.links
    links = (first.model_copy(update=change), *others)
    assert Topology(cluster).hosts_are_alike
    assert not Topology(cluster.model_copy(update={"links": links})).hosts_are_alike
    doubled = cluster.model_copy(update={"links": (first, *cluster.links)})
    assert not Topology(doubled).hosts_are_alike


def test_bounds_are_never_above_prices() -> None:
    """Of any mesh, also of those of few ranks, which are priced in any case, and of any settings
    together.
    """
    chance = random.Random(2)
    measured = a_table("all_gather", {2**16: 1e-5, 2**26: 1e-3}, size=4, groups=4)
    for spec, cluster, backend in (
        (SPEC, a_cluster(hosts=4, devices=4), "native"),
        (SPEC, a_cluster(hosts=4, devices=4, collectives=(measured,)), "native"),
        (find_model("flux-dev"), railed(4), "native"),
        (find_model("flux-dev"), railed(4), "xdit"),
        (find_model("wan2.1-1.3b"), find_cluster("2x8xl40-pcie-eth100"), "native"),
        (find_model("sana"), find_cluster("8xh100-nvlink"), "native"),
    ):
        task = Task(
            spec,
            spec.defaults,
            cluster,
            backend=find_backend(backend),
            allowed=ApproximationPolicy(),
        )
        model = CostModel(Topology(cluster), spec, constants=find_backend(backend).costs)
        space = space_of(task, Topology(cluster))
        bounds = model.lower_bounds(spec.defaults)
        for choice in chance.sample(space.choices, min(25, len(space.choices))):
            settings = with_other_warmups(choice.settings, spec.defaults.steps, chance)
            tried = replace(choice, settings=settings)
            for candidate in itertools.islice(space.placed(tried), 0, None, 7):
                part, mesh = candidate.pipefusion, candidate.mesh
                price = model.price(model.balanced(candidate, spec.defaults), spec.defaults)
                key = bounds.order_key(mesh, candidate.order)
                of_part = [setting for setting in settings if setting[0] == part]
                for group in ([(part, candidate.mode)], of_part, settings):
                    assert bounds.least_s(mesh, key, group) <= price.latency_s
                    assert bounds.least_bytes(mesh, group) <= price.memory_bytes


def with_other_warmups(
    settings: Sequence[Setting], steps: int, chance: random.Random
) -> tuple[Setting, ...]:
    """Settings whose parts have any number of warm-up steps, as some measured quality allows."""
    changed: list[Setting] = []
    for part, group in itertools.groupby(settings, key=lambda setting: setting[0]):
        warmups = {"warmup_steps": chance.choice((1, 2, steps - 1, steps))}
        other = part.model_copy(update=warmups) if part else None
        changed += [(other, mode) for _, mode in group]
    return tuple(changed)


def test_leaving_out_changes_no_plan_that_no_other_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = a_cluster(hosts=3, devices=8, between_bytes_per_s=50e9)
    task = replace(a_task(cluster), modes=("eager", "compile+graph"))
    few, pruned = price_all(task, Topology(cluster))
    monkeypatch.setattr("ditplan.planner.search.pricing.PRICED_RANKS", 1000)
    every, _ = price_all(task, Topology(cluster))
    assert pruned["can't be among the best"] > 0
    assert len(few) < len(every)
    assert undominated(few) == undominated(every)
    assert str(few[0].configuration) == str(every[0].configuration)
    assert [r.configuration for r in few if r.is_baseline] == [
        r.configuration for r in every if r.is_baseline
    ]


def test_on_large_clusters_no_more_memory_is_given_up_than_may_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ditplan.planner.search.pricing.LARGE_CLUSTER", 8)
    monkeypatch.setattr("ditplan.planner.search.pruning.COARSE_MEMORY", 1.02)
    cluster, flux = a_cluster(hosts=4, devices=8, between_bytes_per_s=50e9), find_model("flux-dev")
    task = Task(flux, flux.defaults, cluster, modes=("eager",), allowed=ApproximationPolicy())
    few, _ = price_all(task, Topology(cluster))
    monkeypatch.setattr("ditplan.planner.search.pricing.PRICED_RANKS", 1000)
    every, _ = price_all(task, Topology(cluster))
    assert len(few) < len(every) / 2
    known = undominated(few)
    for latency_s, gpus, memory_bytes, approximate in undominated(every):
        most = (latency_s, gpus, 1.02 * memory_bytes, approximate)
        assert any(all(a <= b for a, b in zip(one, most, strict=True)) for one in known)


def undominated(ranked: Sequence[PricedCandidate]) -> set[tuple[float, ...]]:
    """The plans that no other beats in latency, GPUs, memory and exactness."""
    points = {
        (
            float(f"{r.prediction.latency_s:.9g}"),
            r.configuration.mesh.size,
            r.prediction.memory_bytes,
            not r.quality.exact,
        )
        for r in ranked
    }
    return {
        p
        for p in points
        if not any(q != p and all(a <= b for a, b in zip(q, p, strict=True)) for q in points)
    }


def test_up_to_sixteen_ranks_all_that_is_nearly_as_good_is_priced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = a_task(find_cluster("2x8xl40-pcie-eth100"))
    few, _ = price_all(task, Topology(task.cluster))
    monkeypatch.setattr("ditplan.planner.search.pricing.PRICED_RANKS", 1000)
    every, _ = price_all(task, Topology(task.cluster))
    assert len(few) < len(every)
    known = {ranked.configuration.key for ranked in few}
    limit_s = 1.5 * every[0].prediction.latency_s
    near = [ranked for ranked in every if ranked.prediction.latency_s < limit_s]
    assert len(near) > 50
    assert {ranked.configuration.key for ranked in near} <= known


def test_a_pinned_mesh_that_fills_hosts_unevenly_is_priced_all_the_same() -> None:
    task = replace(a_task(a_cluster(hosts=4, devices=8)), pins={"ulysses": 5, "ring": 4, "cfg": 1})
    assert {c.mesh for c in space_of(task, Topology(task.cluster)).candidates} == {
        Mesh(ring=4, ulysses=5)
    }


@settings(max_examples=15)
@given(mesh=MESHES, factors=FASTER, data=st.data())
def test_more_bandwidth_never_makes_a_plan_dearer(
    mesh: Mesh, factors: list[float], data: st.DataObject
) -> None:
    slow = a_cluster(hosts=8, devices=8, between_bytes_per_s=5e9)
    by_node: dict[str, float] = {}
    fast = slow.model_copy(
        update={
            "links": tuple(
                link.model_copy(
                    update={
                        "bytes_per_s": link.bytes_per_s
                        * by_node.setdefault(link.a, factors[len(by_node) % 6])
                    }
                )
                for link in slow.links
            )
        }
    )
    candidate = a_candidate(mesh, data)
    before, after = (CostModel(Topology(c), SPEC).price(candidate, WORKLOAD) for c in (slow, fast))
    assert after.latency_s <= before.latency_s * (1 + 1e-9)


@settings(max_examples=10)
@given(mesh=MESHES, hosts=st.permutations(range(8)), data=st.data())
def test_relabelling_hosts_changes_no_price(
    mesh: Mesh, hosts: list[int], data: st.DataObject
) -> None:
    model = CostModel(Topology(a_cluster(hosts=8, devices=8)), SPEC)
    candidate = a_candidate(mesh, data)
    placement = tuple(hosts[rank // 8] * 8 + rank % 8 for rank in candidate.placement)
    moved = model.price(replace(candidate, placement=placement), WORKLOAD)
    assert moved.latency_s == pytest.approx(model.price(candidate, WORKLOAD).latency_s)


@settings(max_examples=25)
@given(mesh=MESHES, data=st.data())
def test_parts_sum_to_the_latency(mesh: Mesh, data: st.DataObject) -> None:
    price = CostModel(Topology(a_cluster(hosts=8, devices=8)), SPEC).price(
        a_candidate(mesh, data), WORKLOAD
    )
    assert math.isclose(sum(price.parts.values()), price.latency_s, rel_tol=1e-6)


def a_candidate(mesh: Mesh, data: st.DataObject) -> Configuration:
    """The mesh in any order, mode and with any patches."""
    order = data.draw(st.sampled_from(list(axis_orders(mesh))))
    part = evenly_staged(mesh, SPEC, data.draw(st.integers(1, 9)), 1)
    mode: Mode = data.draw(st.sampled_from(typing.get_args(Mode)))
    return Configuration(mesh, placement_of(mesh, order), mode, order, part)


def test_groups_of_one_pattern_are_the_same_key() -> None:
    assert groups_along(Mesh(ring=2, ulysses=4), AXES, ("ring", "ulysses")) == AxisGroups(
        ((8, 1),), 8
    )
