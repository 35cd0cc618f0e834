"""Objectives: the Pareto set against its definition, what is read from it against all candidates,
and replicas with the links they share.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ditplan.planner.network.topology import Topology
from ditplan.planner.objectives import (
    FASTEST,
    Figures,
    Objective,
    ObjectiveName,
    choose,
    pareto_set,
    quality_order,
)
from ditplan.planner.search.acquisition import corrected, next_by_objective
from ditplan.planner.search.policy import MeasurementPolicy, RunResult
from ditplan.planner.search.pricing import price_all
from ditplan.planner.search.ranking import PricedCandidate, SearchResult, to_measure
from ditplan.planner.search.replicas import replica_starts, with_replicas
from ditplan.planner.search.search import search
from ditplan.planner.space.approximations import ApproximationPolicy
from ditplan.planner.task import Task
from ditplan.profiles.cluster import ClusterProfile, Host
from ditplan.profiles.errors import InputError
from ditplan.profiles.plan import ExecutionPlan, Measurement, Quality
from tests.unit.planner_factories import WORKLOAD, a_cluster, a_device, a_link, sd3_like

TASK = Task(
    sd3_like(), WORKLOAD, a_cluster(devices=4), modes=("eager",), allowed=ApproximationPolicy()
)
PAIRS = WORKLOAD.model_copy(update={"batch": 2})
NAMES: tuple[ObjectiveName, ...] = ("latency", "throughput", "gpus")

QUALITIES = st.sampled_from(
    [Quality(exact=True), Quality(exact=False, relative_l2=0.1), Quality(exact=False)]
).map(quality_order)


@st.composite
def some_figures(draw: st.DrawFn) -> list[Figures]:
    """Candidates of few different values, so that many are equal or dominated; fewer GPUs never
    have fewer replicas.
    """
    replicas = sorted(draw(st.lists(st.integers(1, 4), min_size=4, max_size=4)), reverse=True)
    sized = st.integers(1, 4)
    candidate = st.builds(
        lambda latency, gpus, memory, quality: Figures(
            latency / 2, gpus, memory, quality, replicas[gpus - 1]
        ),
        st.integers(1, 6),
        sized,
        sized,
        QUALITIES,
    )
    return draw(st.lists(candidate, min_size=1, max_size=25))


def is_beaten(one: Figures, others: Sequence[Figures]) -> bool:
    """The definition: another is at least as good in all four, and better in one."""
    mine = one.weighed
    return any(
        all(b <= a for a, b in zip(mine, other.weighed, strict=True))  # type: ignore[operator]
        and any(b < a for a, b in zip(mine, other.weighed, strict=True))  # type: ignore[operator]
        for other in others
    )


@given(some_figures())
def test_the_pareto_set_is_all_that_no_other_one_beats(figures: list[Figures]) -> None:
    expected = [i for i, one in enumerate(figures) if not is_beaten(one, figures)]
    assert sorted(pareto_set(figures)) == expected


@given(some_figures(), st.sampled_from(NAMES), st.one_of(st.none(), st.integers(0, 6)))
def test_the_choice_from_the_set_is_the_best_of_all_candidates(
    figures: list[Figures], name: ObjectiveName, max_latency_s: int | None
) -> None:
    enough = [one for one in figures if max_latency_s is None or one.latency_s <= max_latency_s]
    assume(enough)
    chosen = choose(figures, Objective(name, max_latency_s))
    assert chosen is not None
    one = figures[chosen]
    assert one in enough
    if name == "latency":
        fastest = min((other.latency_s, other.gpus) for other in enough)
        assert (one.latency_s, one.gpus) == fastest
    elif name == "gpus":
        fewest = min((other.gpus, other.latency_s) for other in enough)
        assert (one.gpus, one.latency_s) == fewest
    else:
        most = max(other.pictures / other.latency_s for other in enough)
        equal = [o for o in enough if o.pictures / o.latency_s == pytest.approx(most, rel=1e-9)]
        assert one in equal
        assert one.gpus == min(other.gpus for other in equal)


@given(some_figures(), st.sampled_from(NAMES), st.floats(0, 1, exclude_max=True))
def test_nothing_is_chosen_where_none_is_fast_enough(
    figures: list[Figures], name: ObjectiveName, part: float
) -> None:
    too_short_s = part * min(one.latency_s for one in figures)
    assert choose(figures, Objective(name, too_short_s)) is None


def test_of_equal_throughput_the_plan_of_fewer_gpus_is_chosen() -> None:
    two = Figures(1.0, 2, 1, (0, 0.0), pictures=2)
    one = Figures(2.0, 1, 1, (0, 0.0), pictures=4)
    assert choose([two, one], Objective("throughput")) == 1
    assert choose([two, one], Objective("throughput", 1.5)) == 0


def test_exact_comes_before_a_known_distance_and_that_before_an_unknown_one() -> None:
    distances = [Quality(exact=False, relative_l2=distance) for distance in (0.0, 0.2, 7.0)]
    qualities = [Quality(exact=True), *distances, Quality(exact=False)]
    orders = [quality_order(quality) for quality in qualities]
    assert orders == sorted(set(orders))


def hosts_of(sizes: Sequence[int], slow: Sequence[bool]) -> ClusterProfile:
    """A cluster of hosts of these sizes, some of slower devices."""
    hosts = []
    for number, (size, is_slow) in enumerate(zip(sizes, slow, strict=True)):
        device = a_device().model_copy(update={"name": "slow" if is_slow else "fast"})
        hosts.append(Host(name=f"h{number}", devices=(device,) * size))
    links = [a_link(f"h{h}/{i}", "all", 1e9) for h, size in enumerate(sizes) for i in range(size)]
    return ClusterProfile(name="test", hosts=tuple(hosts), links=tuple(links), source="a test")


@st.composite
def hosts_and_plans(draw: st.DrawFn) -> tuple[list[tuple[int, bool]], int, int]:
    """Hosts, each with its GPUs and whether they are slow; how many GPUs of all are used; the size
    of a plan that has room on them.
    """
    hosts = draw(st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=1, max_size=4))
    there = sum(size for size, _ in hosts)
    gpus = draw(st.integers(max(1, there - 4), there))
    return hosts, gpus, draw(st.integers(1, min(6, gpus)))


@given(hosts_and_plans())
def test_replicas_are_as_many_as_fit_like_the_first_one(
    case: tuple[list[tuple[int, bool]], int, int],
) -> None:
    hosts, gpus, size = case
    sizes, slow = zip(*hosts, strict=True)
    cluster = hosts_of(sizes, slow)
    places = [
        (number, is_slow) for number, (count, is_slow) in enumerate(hosts) for _ in range(count)
    ]

    def shape(start: int) -> list[tuple[int, bool]]:
        return [(number - places[start][0], s) for number, s in places[start : start + size]]

    alike = [start for start in range(gpus - size + 1) if shape(start) == shape(0)]
    most = max(
        count
        for count in range(1, len(alike) + 1)
        for starts in itertools.combinations(alike, count)
        if all(b - a >= size for a, b in itertools.pairwise(starts))
    )
    starts = replica_starts(cluster, size, gpus)
    assert len(starts) == most
    assert set(starts) <= set(alike)
    assert all(b - a >= size for a, b in itertools.pairwise(starts))
    assert starts[0] == 0
    if size > 1:
        assert len(replica_starts(cluster, size - 1, gpus)) >= len(starts)


@pytest.mark.parametrize(
    ("size", "gpus", "expected"),
    [
        (1, 16, tuple(range(16))),
        (3, 16, (0, 3, 8, 11)),
        (8, 16, (0, 8)),
        (8, 15, (0,)),
        (4, 12, (0, 4, 8)),
        (12, 16, (0,)),
    ],
)
def test_replicas_keep_within_hosts(size: int, gpus: int, expected: tuple[int, ...]) -> None:
    assert replica_starts(a_cluster(hosts=2, devices=8), size, gpus) == expected


def crossed(bytes_per_s: float) -> ClusterProfile:
    """Four devices whose neighbours in rank sit on different switches, with one link between."""
    links = [a_link(f"h0/{i}", "left" if i % 2 == 0 else "right", 50e9, "pcie") for i in range(4)]
    return ClusterProfile(
        name="crossed",
        hosts=(Host(name="h0", devices=(a_device(),) * 4),),
        links=(*links, a_link("left", "right", bytes_per_s, "pcie")),
        source="a test",
    )


def replicated(task: Task) -> list[PricedCandidate]:
    topology, task = Topology(task.cluster), replace(task, objective=Objective("throughput"))
    return with_replicas(task, topology, price_all(task, topology)[0])


def test_replicas_on_one_link_have_half_of_it_each() -> None:
    """Two copies over a link take what one takes over half of it, exact or with stages."""
    task = replace(TASK, cluster=crossed(10e9))
    half = replace(task, cluster=crossed(5e9))
    alone_s = {
        one.configuration: one.prediction.latency_s
        for one in price_all(half, Topology(half.cluster))[0]
    }
    pairs = [one for one in replicated(task) if one.configuration.mesh.size == 2]
    assert {one.configuration.mesh.pipefusion for one in pairs} == {1, 2}
    for one in pairs:
        assert one.replicas == 2
        together_s = one.prediction.latency_s * one.slowdown
        # stages may be divided otherwise over a slower link
        if one.configuration in alone_s:
            assert together_s == pytest.approx(alone_s[one.configuration], rel=1e-9)
    slowed = {str(one.configuration.mesh): one.slowdown for one in pairs}
    assert slowed["ulysses2"] > 1.05
    assert slowed["pipefusion2"] > 1
    assert {one.configuration for one in pairs} & alone_s.keys() >= {
        one.configuration for one in pairs if one.configuration.mesh.pipefusion == 1
    }


def test_replicas_that_share_no_link_are_as_fast_as_alone() -> None:
    for one in replicated(replace(TASK, cluster=a_cluster(hosts=2, devices=2))):
        size = one.configuration.mesh.size
        assert one.replicas == {1: 4, 2: 2, 3: 1, 4: 1}[size]
        assert one.slowdown == pytest.approx(1, rel=1e-9)


def by(name: ObjectiveName, max_latency_s: float | None = None, task: Task = TASK) -> SearchResult:
    return search(replace(task, objective=Objective(name, max_latency_s)))


def test_throughput_is_the_best_of_all_candidates_times_their_replicas() -> None:
    """On links that nobody shares; a batch of 2 may also be split by dp."""
    task = replace(TASK, workload=PAIRS)
    by_hand = {
        one.configuration: (4 // one.configuration.mesh.size) * 2 / one.prediction.latency_s
        for one in search(task).ranked
    }
    found = by("throughput", task=task)
    assert by_hand[found.best.configuration] == pytest.approx(max(by_hand.values()), rel=1e-5)
    assert found.best.replicas == 4 // found.best.configuration.mesh.size
    ordered = [by_hand[one.configuration] for one in found.ranked]
    assert ordered == pytest.approx(sorted(ordered, reverse=True), rel=1e-5)
    assert all("throughput" in one.reason for one in found.alternatives)


def test_max_latency_bounds_what_a_call_takes_while_copies_run() -> None:
    task = replace(TASK, cluster=crossed(10e9))
    pair = next(one for one in replicated(task) if str(one.configuration.mesh) == "ulysses2")
    together_s = pair.prediction.latency_s * pair.slowdown
    task = replace(task, pins={"ulysses": 2, "cfg": 1, "ring": 1, "pipefusion": 1})
    assert by("throughput", together_s * 1.001, task).best.replicas == 2
    with pytest.raises(InputError, match=r"takes .* s while 2 copies run \(predicted\)"):
        by("throughput", together_s * 0.999, task)


@pytest.mark.parametrize("share", [1.0, 1.5, 2.5, 10.0])
def test_gpus_is_the_fewest_of_all_candidates_that_are_fast_enough(share: float) -> None:
    predicted = [
        (one.prediction.latency_s, one.configuration.mesh.size) for one in search(TASK).ranked
    ]
    bound_s = share * min(predicted)[0] * 1.00001
    found = by("gpus", bound_s)
    fewest = min(gpus for latency_s, gpus in predicted if latency_s <= bound_s)
    assert found.best.configuration.mesh.size == fewest
    assert found.best.prediction.latency_s == pytest.approx(
        min(s for s, gpus in predicted if gpus == fewest), rel=1e-5
    )
    for one in found.alternatives:
        if one.prediction.latency_s > bound_s:
            assert one.reason.startswith("too slow: ")
        elif one.configuration.mesh.size > fewest:
            assert one.reason.startswith(f"needs {one.configuration.mesh.size - fewest} more GPU")


def test_a_bound_that_nothing_keeps_is_refused_with_the_fastest() -> None:
    fastest = search(TASK).best
    with pytest.raises(
        InputError, match=f"the fastest, {fastest.configuration.mesh}, takes"
    ) as refused:
        by("gpus", 0.001)
    enough_s = float(str(refused.value).split("use max_latency_s=")[1].split()[0])
    assert by("gpus", enough_s).best.configuration.mesh == fastest.configuration.mesh


def test_the_ranking_s_pareto_set_is_that_of_what_fits() -> None:
    large = WORKLOAD.model_copy(update={"height": 4096, "width": 4096})
    device = a_device(memory_bytes=43_400_000_000)
    task = replace(TASK, workload=large, cluster=a_cluster(devices=4, device=device))
    found = search(task)
    fitting = [one for one in found.ranked if not one.too_big]
    assert len(fitting) < len(found.ranked)
    figures = [one.figures(1) for one in fitting]
    expected = [
        one for one, own in zip(fitting, figures, strict=True) if not is_beaten(own, figures)
    ]
    assert set(map(id, found.pareto)) == set(map(id, expected))
    assert found.best in found.pareto


def test_for_the_fewest_gpus_the_fastest_of_each_number_is_measured_first() -> None:
    fitting = search(TASK).ranked
    bound_s = 2.5 * fitting[0].prediction.latency_s
    order = to_measure(fitting, Objective("gpus", bound_s), 1)
    fastest: list[PricedCandidate] = []
    for gpus in range(1, 5):
        own = [one for one in fitting if one.configuration.mesh.size == gpus]
        first = min(own, key=lambda one: one.prediction.latency_s)
        before = min((one.prediction.latency_s for one in fastest), default=bound_s)
        if first.prediction.latency_s < before:
            fastest.append(first)
    assert len(fastest) >= 2
    assert order[: len(fastest)] == fastest
    assert sorted(map(id, order)) == sorted(map(id, fitting))
    assert all(one.prediction.latency_s > bound_s for one in order[-1:])


class Slow:
    """Hardware on which plans of two GPUs take 10 s, all others 0.1 s."""

    def __init__(self) -> None:
        self.ran: list[int] = []

    def __call__(self, plan: ExecutionPlan) -> RunResult:
        self.ran.append(plan.mesh.size)
        return RunResult(10.0 if plan.mesh.size == 2 else 0.1)


def test_the_fewest_gpus_are_judged_by_what_was_measured() -> None:
    predicted = [
        (one.prediction.latency_s, one.configuration.mesh.size) for one in search(TASK).ranked
    ]
    bound_s = 1.05 * min(s for s, gpus in predicted if gpus == 2)
    machine = Slow()
    objective = Objective("gpus", bound_s)
    found = search(replace(TASK, objective=objective), MeasurementPolicy(machine, top=3, rounds=1))
    assert machine.ran[0] == 2
    assert found.best.measurement is not None
    assert found.best.configuration.mesh.size == min(size for size in machine.ran if size != 2)
    assert next(one for one in found.ranked if one.configuration.mesh.size == 2).reason.startswith(
        "too slow: 10 s (measured)"
    )


@pytest.mark.parametrize("slower", [0.8, 1.5, 3.0])
@pytest.mark.parametrize(("name", "share"), [("gpus", 1.2), ("gpus", 9.0), ("throughput", 9.0)])
def test_what_is_measured_next_should_be_better_than_what_was(
    name: ObjectiveName, share: float, slower: float
) -> None:
    found = replicated(TASK)
    bound_s = share * found[0].prediction.latency_s
    objective = Objective(name, bound_s)
    order = to_measure(found, objective, 1)
    results = [
        replace(one, measurement=measured(slower * one.prediction.latency_s))
        for one in order[: len(order) // 3]
    ] + order[len(order) // 3 :]
    chosen = next_by_objective(results, 9, objective, 1)
    figures = [(one, one.figures(1)) for one in corrected(results)]
    known = [own for one, own in figures if one.measurement and objective.is_met(own)]
    better = [
        (objective.key(own), one)
        for one, own in figures
        if not one.measurement
        and objective.is_met(own)
        and all(objective.key(own) < objective.key(other) for other in known)
    ]
    if known:
        assert {one.configuration for one in chosen} <= {one.configuration for _, one in better}
        assert bool(chosen) == bool(better)
    else:
        assert len(chosen) == 3
    assert not any(one.measurement for one in chosen)


def measured(latency_s: float) -> Measurement:
    return Measurement(
        latency_s=latency_s, runs_s=(latency_s,), measured_on="2026-01-02", devices="H100"
    )


def test_measuring_ends_where_nothing_should_serve_the_objective_better() -> None:
    """One GPU is enough, and was measured first."""
    task = replace(TASK, objective=Objective("gpus", 1000.0))
    found = search(task, MeasurementPolicy(lambda plan: RunResult(1.0), top=9, rounds=1))
    assert found.best.configuration.mesh.size == 1
    assert sum(one.measurement is not None for one in found.ranked) <= 4
    assert "should serve the objective better" in found.ended


def test_measured_throughput_decides() -> None:
    found = search(
        replace(TASK, objective=Objective("throughput")),
        MeasurementPolicy(lambda plan: RunResult(9.0 / plan.mesh.size**2), top=4, rounds=4),
    )
    measured = [one for one in found.ranked if one.measurement]
    assert {len(one.measurement.runs_s) for one in measured if one.measurement} == {4}
    figures = [one.figures(1).throughput_per_s for one in measured]
    assert figures == sorted(figures, reverse=True)
    assert found.best is found.ranked[0] is measured[0]
    assert found.best.configuration.mesh.size > 1


def test_without_an_objective_latency_decides() -> None:
    assert TASK.objective == FASTEST
    assert by("latency").ranked == replace(search(TASK), search_s=0).ranked
