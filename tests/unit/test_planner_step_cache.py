"""Step caches in the planner: what they save, and for whom they are tried."""

import math

import pytest

from ditplan.planner.cost_model import CostModel
from ditplan.planner.report import candidate_json
from ditplan.planner.search.ranking import SearchResult
from ditplan.planner.search.search import search
from ditplan.planner.task import Task, allowed_for
from ditplan.profiles.backends import find_backend
from ditplan.profiles.catalog import find_model, known_quality
from ditplan.profiles.configuration import Configuration, TaylorSeer
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.plan import ExecutionPlan
from tests.unit.planner_factories import WORKLOAD, a_cluster, ranks, sd3_like

TINY = find_model("sd3-tiny")
KNOWN = known_quality(TINY, TINY.defaults)
DISTANCES = {point.step_cache: point.relative_l2 for point in KNOWN.step_caches} if KNOWN else {}


def planned(quality: str, backend: str = "native", **pins: int) -> SearchResult:
    """What `tune --quality` plans for `sd3-tiny` on paper."""
    found = allowed_for(TINY, TINY.defaults, quality, KNOWN, pipefusion=pins.get("pipefusion"))
    return search(
        Task(
            TINY,
            TINY.defaults,
            a_cluster(devices=2),
            pins=pins,
            backend=find_backend(backend),
            allowed=found,
            known=KNOWN,
        )
    )


def caches_in(ranking: SearchResult) -> set[TaylorSeer]:
    return {one.configuration.step_cache for one in ranking.ranked if one.configuration.step_cache}


def test_only_steps_that_compute_cost_more_than_the_scheduler() -> None:
    mesh, cache = Mesh(cfg=2), TaylorSeer(interval=3)
    model = CostModel(a_cluster(), sd3_like())
    whole = model.price(Configuration(mesh, ranks(mesh), "graph"), WORKLOAD)
    cached = model.price(Configuration(mesh, ranks(mesh), "graph", step_cache=cache), WORKLOAD)
    computed = sum(cache.computes(step) for step in range(20))
    assert computed == 9
    for part, seconds in whole.parts.items():
        share = 1.0 if part == "scheduler" else computed / 20
        assert cached.parts[part] == pytest.approx(share * seconds)
    assert math.fsum(cached.parts.values()) == pytest.approx(cached.latency_s)
    for kind, count in whole.link_bytes.items():
        assert cached.link_bytes[kind] == pytest.approx(count * computed / 20)
    assert cached.interval_s[0] < cached.latency_s < cached.interval_s[1]


@pytest.mark.parametrize("quality", ["exact", "safe"])
def test_caches_are_not_tried_unasked(quality: str) -> None:
    assert not caches_in(planned(quality))


def test_a_bound_allows_the_caches_whose_own_distance_keeps_it() -> None:
    assert len(DISTANCES) >= 2
    between = sum(sorted(DISTANCES.values())[:2]) / 2
    for bound in (min(DISTANCES.values()) / 2, between, 1.0):
        expected = {cache for cache, distance in DISTANCES.items() if distance <= bound}
        assert caches_in(planned(str(bound))) == expected


def test_a_cached_plan_is_the_fastest_and_says_how_far_off_it_is() -> None:
    ranking = planned("1.0", pipefusion=1)
    best = ranking.best
    cache = best.configuration.step_cache
    assert cache is not None
    plan = ranking.to_plan()
    assert ExecutionPlan.from_json(plan.model_dump_json(), "plan") == plan
    assert plan.configuration.step_cache == cache
    assert plan.quality.relative_l2 == DISTANCES[cache]
    assert not plan.quality.exact
    row = candidate_json(best, "native")
    assert (row["step_cache"], row["quality"]) == (cache.model_dump(), DISTANCES[cache])
    keys = {one.configuration.key for one in ranking.ranked}
    assert len(keys) == len(ranking.ranked)


def test_any_quality_tries_caches_that_nobody_measured() -> None:
    ranking = planned("any")
    unknown = caches_in(ranking) - DISTANCES.keys()
    assert unknown
    assert all(
        one.quality.relative_l2 is None
        for one in ranking.ranked
        if one.configuration.step_cache in unknown
    )


def test_caches_are_neither_the_baseline_nor_with_stages_nor_on_other_backends() -> None:
    for one in planned("any").ranked:
        assert not (
            one.configuration.step_cache and (one.is_baseline or one.configuration.pipefusion)
        )
    assert not caches_in(planned("any", "xdit"))
