"""Weights that are shared out, in the planner: what they save and cost, when they are chosen."""

from dataclasses import replace

import pytest

from ditplan.planner.cost.memory import memory_of
from ditplan.planner.cost_model import CostModel
from ditplan.planner.network.topology import Topology
from ditplan.planner.report import candidate_json
from ditplan.planner.search.pricing import price_all
from ditplan.planner.search.search import search
from ditplan.planner.space.approximations import ApproximationPolicy
from ditplan.planner.task import Task
from ditplan.profiles.catalog import find_model
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.errors import InputError
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.plan import ExecutionPlan
from tests.unit.planner_factories import WORKLOAD, a_cluster, a_device, ranks, sd3_like

SPEC = sd3_like()
FLUX = find_model("flux-dev")


def in_pieces(mesh: Mesh) -> Configuration:
    return Configuration(mesh, ranks(mesh), weights="sharded")


def test_a_rank_holds_its_piece_of_all_blocks_and_two_whole_ones() -> None:
    mesh, device = Mesh(cfg=2, ulysses=2), a_device()
    whole = memory_of(SPEC, WORKLOAD, Configuration(mesh, ranks(mesh)), device)
    pieces = memory_of(SPEC, WORKLOAD, in_pieces(mesh), device)
    (run,) = SPEC.blocks
    saved = 2 * run.parameters * (run.count * 3 / 4 - 2)
    assert whole.weights_bytes - pieces.weights_bytes == saved
    assert replace(pieces, weights_bytes=whole.weights_bytes) == whole


def test_gathering_a_block_is_seen_as_far_as_the_one_before_is_done_earlier() -> None:
    mesh = Mesh(ulysses=2)
    (run,) = SPEC.blocks

    def price(rate: float, candidate: Configuration) -> dict[str, float]:
        cluster = a_cluster(devices=2, inside_bytes_per_s=rate, inside_kind="pcie")
        return CostModel(cluster, SPEC).price(candidate, WORKLOAD).parts

    for rate in (1e9, 1e13):
        whole = price(rate, Configuration(mesh, ranks(mesh)))
        pieces = price(rate, in_pieces(mesh))
        waited_s = pieces.pop("weights")
        # what is launched while a block is waited for isn't waited for again
        assert pieces.pop("launch") <= whole.pop("launch")
        assert pieces == pytest.approx(whole)
        topology = Topology(a_cluster(devices=2, inside_bytes_per_s=rate, inside_kind="pcie"))
        gathered = topology.collective_s("all_gather", run.parameters, [(0, 1)])
        block_s = sum(whole[part] for part in ("blocks", "attention", "ulysses")) / run.count
        late_s = max(0.0, gathered.seconds - block_s / WORKLOAD.steps)
        assert (late_s > 0) == (rate == 1e9)
        assert waited_s == pytest.approx(run.count * WORKLOAD.steps * late_s)


def task_on(memory_bytes: int) -> Task:
    cluster = a_cluster(devices=4, device=a_device(memory_bytes=memory_bytes))
    return Task(FLUX, FLUX.defaults, cluster, modes=("eager", "graph"), allowed=None)


def test_pieces_are_planned_where_whole_weights_fit_nowhere_and_only_there() -> None:
    roomy, _ = price_all(task_on(80_000_000_000), Topology(task_on(80_000_000_000).cluster))
    assert {one.configuration.weights for one in roomy} == {"replicated"}
    task = task_on(24_000_000_000)
    found = search(task)
    assert found.best.configuration.weights == "sharded"
    plan = found.to_plan()
    assert plan.configuration.weights == "sharded"
    assert ExecutionPlan.from_json(plan.model_dump_json(), "plan") == plan
    assert candidate_json(found.best, "native")["weights"] == "sharded"
    assert (
        found.best.configuration.key != replace(found.best.configuration, weights="replicated").key
    )
    fitting = [one for one in found.ranked if not one.too_big]
    assert {(one.configuration.weights, one.configuration.mode) for one in fitting} == {
        ("sharded", "eager")
    }


def test_stages_are_rather_made_than_weights_gathered_over_a_slow_link() -> None:
    slow = a_cluster(
        devices=4,
        device=a_device(memory_bytes=24_000_000_000),
        inside_bytes_per_s=2e9,
        inside_kind="pcie",
    )
    task = replace(task_on(24_000_000_000), cluster=slow, allowed=ApproximationPolicy())
    best = search(task).best.configuration
    assert best.weights == "replicated"
    assert best.mesh.pipefusion > 1


def test_what_fits_in_no_way_is_refused_with_what_pieces_need() -> None:
    with pytest.raises(InputError, match=r"the smallest, ulysses4, needs 20\.2 GB of 8\.0 GB"):
        search(task_on(8_000_000_000))
