"""Under the default quality an exact plan wins against one of unknown error that isn't faster by
more than predictions can miss.
"""

from dataclasses import replace

import pytest

from ditplan.planner.network.topology import Topology
from ditplan.planner.objectives import FASTEST, Objective
from ditplan.planner.report import best_text, candidate_json, notes_on, table_cells
from ditplan.planner.search.pricing import price_all
from ditplan.planner.search.ranking import (
    MEASURED_LEAD,
    PREDICTED_LEAD,
    PricedCandidate,
    in_order,
    to_measure,
)
from ditplan.planner.search.search import search
from ditplan.planner.task import Task, TuneRequest
from ditplan.profiles.catalog import find_cluster, find_model
from ditplan.profiles.plan import Measurement, Quality
from tests.unit.planner_factories import WORKLOAD, a_cluster, sd3_like

REQUEST = TuneRequest(sd3_like(), known=lambda workload: None)
CLUSTER = a_cluster(devices=2)
TASK = REQUEST.task(WORKLOAD, CLUSTER)
TOPOLOGY = Topology(CLUSTER)
PRICED = price_all(TASK, TOPOLOGY)[0]
EXACT = next(one for one in PRICED if one.configuration.mesh.cfg == 2)
STAGED = next(one for one in PRICED if one.configuration.pipefusion)


def taking(ranked: PricedCandidate, seconds: float, *, measured: bool = False) -> PricedCandidate:
    """The candidate with this latency, predicted or measured."""
    if measured:
        found = Measurement(
            latency_s=seconds, runs_s=(seconds,), memory_bytes=None, measured_on="", devices=""
        )
        return replace(ranked, measurement=found)
    factor = seconds / ranked.prediction.latency_s
    parts = {name: part_s * factor for name, part_s in ranked.prediction.parts.items()}
    changed = {"latency_s": seconds, "parts": parts}
    return replace(ranked, prediction=ranked.prediction.model_copy(update=changed))


def best_of(
    exact_s: float, staged_s: float, *, objective: Objective = FASTEST, measured: bool = False
) -> tuple[PricedCandidate, ...]:
    """The candidates in order, the best one first."""
    pair = (taking(EXACT, exact_s, measured=measured), taking(STAGED, staged_s, measured=measured))
    return in_order(pair, TOPOLOGY, objective)


@pytest.mark.parametrize("objective", [FASTEST, Objective("throughput"), Objective("gpus", 9.0)])
@pytest.mark.parametrize(("measured", "lead"), [(False, PREDICTED_LEAD), (True, MEASURED_LEAD)])
def test_unknown_error_wins_only_by_more_than_can_be_missed(
    objective: Objective, measured: bool, lead: float
) -> None:
    clear = best_of(1.0, 0.999 / lead, objective=objective, measured=measured)
    assert clear[0].configuration == STAGED.configuration
    near = best_of(1.0, 1.001 / lead, objective=objective, measured=measured)
    assert near[0].configuration == EXACT.configuration
    percent = f"not by the {100 * (lead - 1):.0f}% that a plan of unknown error must be"
    assert percent in near[1].reason


def test_a_known_error_needs_no_lead() -> None:
    known = Quality(exact=False, relative_l2=0.1, measured_with="a test")
    staged = replace(taking(STAGED, 0.99), quality=known, must_lead=False)
    best, *_ = in_order((taking(EXACT, 1.0), staged), TOPOLOGY, FASTEST)
    assert best.configuration == STAGED.configuration


def test_an_unknown_error_is_taken_where_nothing_exact_is_fast_enough() -> None:
    bound = Objective("gpus", 0.95)
    assert best_of(1.0, 0.9, objective=bound)[0].configuration == STAGED.configuration


def test_what_is_measured_first_is_what_would_be_chosen_then_the_fastest() -> None:
    one_device = next(one for one in PRICED if one.configuration.mesh.size == 1)
    found = (taking(STAGED, 0.95), taking(EXACT, 1.0), taking(one_device, 1.1))
    order = [one.configuration for one in to_measure(found, FASTEST, 1)]
    assert order == [one.configuration for one in (EXACT, STAGED, one_device)]


def test_any_quality_takes_the_fastest() -> None:
    model, cluster = find_model("flux-dev"), find_cluster("2xh100-nvlink")
    found = {
        quality: search(
            TuneRequest(model, known=lambda workload: None, quality=quality).task(
                model.defaults, cluster
            )
        )
        for quality in ("safe", "any")
    }
    nearest = min(found["any"].ranked, key=lambda one: one.latency_s)
    assert found["any"].best.configuration == nearest.configuration
    assert not found["any"].best.quality.exact
    assert found["safe"].best.quality.exact
    # the case this is for: stages of unknown error are predicted to be faster, within the interval
    staged = [one for one in found["safe"].ranked if one.configuration.pipefusion]
    best_s, staged_s = found["safe"].best.latency_s, min(one.latency_s for one in staged)
    assert staged_s < best_s < staged_s * PREDICTED_LEAD


def test_a_plan_of_unknown_error_is_marked_wherever_it_is_shown() -> None:
    slow = a_cluster(devices=4, inside_bytes_per_s=5e9)
    task: Task = REQUEST.task(WORKLOAD.model_copy(update={"passes": 1}), slow)
    found = search(task)
    best = found.best
    assert best.must_lead
    assert "error not measured" in best_text(found)
    assert "error not measured" in table_cells(1, best)["why not"]
    shown = candidate_json(best, "native")
    assert (shown["exact"], shown["quality"]) == (False, None)
    assert shown["approximation"] == "error not measured"
    exact_s = min(one.latency_s for one in found.ranked if one.quality.exact)
    assert exact_s > best.latency_s * PREDICTED_LEAD
    assert any("the fastest exact plan" in note for note in notes_on(found))
