"""Clusters of unlike devices: blocks and tokens follow the speeds."""

import itertools
import math
from dataclasses import replace

import pytest

from ditplan.planner.cost.mixed_devices import whole_shares
from ditplan.planner.cost.share import share_of
from ditplan.planner.cost_model import CostModel
from ditplan.planner.network.topology import Topology
from ditplan.planner.pipefusion.partition import AS_FAST, StageWork, balanced_unlike_stages
from ditplan.planner.report import shares_json, shares_text
from ditplan.planner.search.pricing import price_all, price_one, priced_as_is, space_of, timeline_of
from ditplan.planner.search.ranking import PricedCandidate, build_plan
from ditplan.planner.search.search import search
from ditplan.planner.space.approximations import ApproximationPolicy
from ditplan.planner.space.placement import placements, seatings
from ditplan.planner.task import Task
from ditplan.profiles.catalog import find_model
from ditplan.profiles.cluster import ClusterProfile, Device
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.mesh import Mesh, placement_of
from tests.unit.planner_factories import a_cluster, a_device

FLUX = find_model("flux-dev")
GB = 10**9


def slowed(times: float, memory_bytes: int = 80 * GB) -> Device:
    """A device all of whose rates are so many times lower."""
    fast = a_device(memory_bytes)
    rates = ("half_flops_per_s", "single_flops_per_s", "memory_bytes_per_s")
    changed: dict[str, object] = {name: getattr(fast, name) / times for name in rates}
    name = f"{times:g} times slower, {memory_bytes // GB} GB"
    return fast.model_copy(update=changed | {"name": name})


def of_devices(*devices: Device, hosts: int = 1) -> ClusterProfile:
    """Hosts with as many of these each, in order."""
    count = len(devices) // hosts
    plain = a_cluster(hosts=hosts, devices=count)
    changed = tuple(
        host.model_copy(update={"devices": devices[i * count : (i + 1) * count]})
        for i, host in enumerate(plain.hosts)
    )
    return plain.model_copy(update={"hosts": changed})


def unlike(*times: float) -> ClusterProfile:
    """A host with devices so many times slower than the fastest."""
    return of_devices(*map(slowed, times))


def priced(cluster: ClusterProfile, mesh: Mesh, **changes: object) -> PricedCandidate:
    workload = FLUX.defaults.model_copy(update=changes)
    return price_one(Task(FLUX, workload, cluster), mesh, "compile+graph")


def equally_shared(cluster: ClusterProfile, ranked: PricedCandidate) -> PricedCandidate:
    task = Task(FLUX, FLUX.defaults, cluster)
    equal = replace(ranked.configuration, token_shares=None)
    return priced_as_is(task, CostModel(cluster, FLUX), equal)


@pytest.mark.parametrize("mesh", [Mesh(ulysses=2), Mesh(ring=2)], ids=str)
def test_a_device_that_is_twice_as_fast_gets_twice_the_tokens(mesh: Mesh) -> None:
    cluster = unlike(1, 2)
    found = priced(cluster, mesh)
    shares = found.configuration.token_shares
    assert shares is not None
    assert shares[0] / shares[1] == pytest.approx(2, rel=0.1)
    assert found.prediction.latency_s < 0.85 * equally_shared(cluster, found).prediction.latency_s
    # two alike do half the work each, these two thirds of it at most
    alike_s = priced(unlike(1, 1), mesh).prediction.latency_s
    assert found.prediction.latency_s == pytest.approx(alike_s * (2 / 3) / (1 / 2), rel=0.05)


def test_a_device_that_is_twice_as_fast_gets_twice_the_blocks() -> None:
    found = priced(unlike(1, 2), Mesh(pipefusion=2)).configuration.pipefusion
    back = priced(unlike(2, 1), Mesh(pipefusion=2)).configuration.pipefusion
    assert found is not None and back is not None
    assert found.blocks_per_stage[0] == pytest.approx(2 * found.blocks_per_stage[1], abs=2)
    # the first ones are double blocks, which take longer
    assert back.blocks_per_stage[1] >= 2 * back.blocks_per_stage[0]


def test_three_unlike_devices_get_tokens_by_speed() -> None:
    shares = priced(unlike(1, 3, 2), Mesh(ring=3)).configuration.token_shares
    assert shares is not None
    fast, slow, between = shares
    assert fast / slow == pytest.approx(3, rel=0.25)
    assert fast / between == pytest.approx(2, rel=0.15)


def test_ranks_that_share_a_place_get_what_the_slowest_of_them_can_do() -> None:
    cluster = unlike(1, 1, 2, 2)
    task = Task(FLUX, FLUX.defaults.model_copy(update={"batch": 2}), cluster)
    model, mesh = CostModel(cluster, FLUX), Mesh(dp=2, ulysses=2)
    apart = Configuration(mesh, placement_of(mesh))
    order = ("ulysses", "cfg", "pipefusion", "ring", "dp")
    together = Configuration(mesh, placement_of(mesh, order), order=order)
    assert model.shared_by_speed(apart, task.workload).token_shares is None
    shares = model.shared_by_speed(together, task.workload).token_shares
    assert shares is not None and shares[0] > 1.8 * shares[1]


def test_alike_devices_have_equal_shares() -> None:
    ranked, _ = price_all(Task(FLUX, FLUX.defaults, a_cluster(devices=4)), Topology(a_cluster()))
    assert all(one.configuration.token_shares is None for one in ranked)
    assert whole_shares((1.0, 1.001)) is None


@pytest.mark.parametrize(
    ("slow", "shares", "heads"),
    [
        ((1, 3), (2, 1), (16, 8)),
        # what the slow ranks' whole heads exceed their shares by is the first one's loss alone
        ((1, 1, 2, 2, 2), (20, 20, 1, 1, 1), (10, 11, 1, 1, 1)),
    ],
)
def test_the_price_is_the_slowest_rank_s(
    slow: tuple[int, ...], shares: tuple[int, ...], heads: tuple[int, ...]
) -> None:
    """Of ranks counted by hand: what each computes by its own share on its own device."""
    cluster, mesh = unlike(*slow), Mesh(ulysses=len(slow))
    model = CostModel(cluster, FLUX)
    candidate = Configuration(mesh, tuple(range(mesh.size)), token_shares=shares)
    parts = model.price(candidate, FLUX.defaults).parts
    attention_s = []
    for place, device in enumerate(cluster.devices):
        share = share_of(mesh, FLUX, FLUX.defaults, shares, place)
        assert [share.heads(a) for a in FLUX.blocks[0].attentions] == [heads[place]]
        alone = CostModel(of_devices(device), FLUX)
        times = alone._work.computing.times_on(device)
        runs = ((run, times.block(run, share, "bfloat16", "eager")) for run in FLUX.blocks)
        attention_s.append(sum(run.count * timed.attention_s for run, timed in runs))
    steps = FLUX.defaults.steps
    assert parts["attention"] == pytest.approx(steps * max(attention_s))


@pytest.mark.parametrize(
    "mesh", [Mesh(ulysses=3), Mesh(ring=3), Mesh(pipefusion=3), Mesh(dp=3)], ids=str
)
def test_the_timeline_takes_as_long_as_the_price(mesh: Mesh) -> None:
    cluster = unlike(1, 3, 2)
    workload = FLUX.defaults.model_copy(update={"batch": mesh.dp, "steps": 6})
    task = Task(FLUX, workload, cluster)
    found = price_one(task, mesh, "eager")
    timeline = timeline_of(task, found.configuration)
    assert timeline.total_s == pytest.approx(found.prediction.latency_s, rel=1e-6)


def test_a_fast_device_with_little_memory_gets_the_blocks_that_it_holds() -> None:
    cluster = of_devices(slowed(1, 24 * GB), slowed(2, 80 * GB))
    small, roomy = (priced(one, Mesh(pipefusion=2)) for one in (cluster, unlike(1, 2)))
    assert not small.too_big
    held, wanted = (one.configuration.pipefusion for one in (small, roomy))
    assert held is not None and wanted is not None
    assert held.blocks_per_stage[0] < wanted.blocks_per_stage[0]


def test_unlike_stages_are_divided_as_well_as_by_trying_all() -> None:
    seconds = (5.0, 1.0, 1.0, 5.0, 1.0, 2.0, 1.0)
    sizes = (1.0, 2.0, 1.0, 1.0, 2.0, 1.0, 1.0)
    for slow, rooms in itertools.product(
        itertools.product((1, 2, 3), repeat=3), ((math.inf,) * 3, (3.0, 5.0, 4.0), (1.0, 1.0, 2.0))
    ):
        stages = [
            StageWork([s * times for s in seconds], 0.0, room)
            for times, room in zip(slow, rooms, strict=True)
        ]

        def judged(counts: tuple[int, ...], stages: list[StageWork] = stages) -> tuple[float, ...]:
            ends = list(itertools.accumulate(counts, initial=0))
            cuts = list(zip(stages, itertools.pairwise(ends), strict=True))
            extra = (0.5, 0.0, 1.5)
            taken = [sum(s.seconds[a:b]) + e for (s, (a, b)), e in zip(cuts, extra, strict=True)]
            return max(sum(sizes[a:b]) - s.room for s, (a, b) in cuts), max(taken)

        tried = [c for c in itertools.product(range(1, 6), repeat=3) if sum(c) == len(seconds)]
        excess, found_s = judged(balanced_unlike_stages(stages, sizes, (0.5, 1.5)))
        fitting_s = [judged(counts)[1] for counts in tried if judged(counts)[0] <= 0]
        if fitting_s:
            assert excess <= 0 and found_s <= AS_FAST * min(fitting_s)
        else:
            assert excess == min(judged(counts)[0] for counts in tried)


def test_devices_are_seated_in_all_ways_and_symmetric_ones_once() -> None:
    assert sorted(seatings(("a", "b", "a"))) == [(0, 1, 2), (0, 2, 1), (1, 0, 2)]
    names = ["a"] * 4 + ["b"] * 4
    assert len(list(seatings(names))) == 70
    assert len(list(seatings(names * 2))) == 3
    topology = Topology(unlike(1, 2, 2))
    fast_at = {p.index(0) for _, p in placements(Mesh(pipefusion=3), topology)}
    assert fast_at == {0, 1, 2}
    assert len(placements(Mesh(ulysses=3), topology)) == 1
    assert len(placements(Mesh(ring=3), topology)) == 1


@pytest.mark.parametrize("allowed", [None, ApproximationPolicy()], ids=["exact", "any"])
def test_the_order_of_hosts_makes_no_difference_where_all_devices_are_used(
    allowed: ApproximationPolicy | None,
) -> None:
    fast, slow = slowed(1), slowed(2)
    hosts = ((fast, fast), (slow, slow))
    found = []
    for first, second in (hosts, hosts[::-1]):
        task = Task(FLUX, FLUX.defaults, of_devices(*first, *second, hosts=2), allowed=allowed)
        ranked, _ = price_all(task, Topology(task.cluster))
        latencies = sorted(
            one.prediction.latency_s for one in ranked if one.configuration.mesh.size == 4
        )
        found.append(latencies)
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_one_gpu_less_of_a_mixed_cluster_is_slower_and_still_shared_by_speed() -> None:
    def best(cluster: ClusterProfile) -> PricedCandidate:
        return search(Task(FLUX, FLUX.defaults, cluster)).best

    all_four, three = best(unlike(1, 1, 2, 2)), best(unlike(1, 1, 2))
    assert three.prediction.latency_s > all_four.prediction.latency_s
    shares = three.configuration.token_shares
    assert shares is not None and shares[0] == shares[1] > 1.8 * shares[2]


def test_a_plan_and_the_report_say_the_shares() -> None:
    cluster = unlike(1, 2)
    task = Task(FLUX, FLUX.defaults, cluster)
    found = priced(cluster, Mesh(ulysses=2))
    plan = build_plan(found, FLUX, task.workload, cluster, task.backend, {})
    assert plan.configuration.token_shares == found.configuration.token_shares
    assert plan.from_json(plan.model_dump_json(), "a test") == plan
    assert plan.configuration.token_shares is not None
    assert shares_json(found)["token_shares"] == list(plan.configuration.token_shares)
    line = shares_text(found, FLUX, task.workload)
    tokens = [int(word) for word in line.partition(": ")[2].split(" + ")]
    assert sum(tokens) == 4096 and tokens[0] > 1.8 * tokens[1]
    assert shares_text(priced(unlike(1, 1), Mesh(ulysses=2)), FLUX, task.workload) == ""


def test_bounds_are_never_above_the_price() -> None:
    cluster = unlike(1, 2, 2, 1, 3, 1)
    task = Task(
        FLUX, FLUX.defaults, cluster, modes=("compile+graph",), allowed=ApproximationPolicy()
    )
    topology = Topology(cluster)
    model = CostModel(topology, FLUX)
    bounds = model.lower_bounds(task.workload)
    space = space_of(task, topology)
    for candidate in itertools.islice(space.candidates, 0, None, 11):
        shared = model.balanced(model.shared_by_speed(candidate, task.workload), task.workload)
        for planned in (shared, model.balanced(candidate, task.workload)):
            price = model.price(planned, task.workload)
            mesh, settings = candidate.mesh, [(candidate.pipefusion, candidate.mode)]
            key = bounds.order_key(mesh, candidate.order)
            assert bounds.least_s(mesh, key, settings) <= price.latency_s, str(planned)
            assert bounds.least_bytes(mesh, settings) <= price.memory_bytes, str(planned)
