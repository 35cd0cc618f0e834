"""Timelines of priced plans: the price, the textbook's counts, and what the trace shows."""

import itertools
import json
from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest

from ditplan.planner.cost.activities import RingAttention
from ditplan.planner.cost.rank_work import RankWork
from ditplan.planner.cost.share import share_of
from ditplan.planner.cost.step import Step
from ditplan.planner.cost_model import CostModel
from ditplan.planner.network.topology import Topology
from ditplan.planner.pipefusion.schedule import Durations
from ditplan.planner.pipefusion.stage_times import LoopTimes
from ditplan.planner.search.pricing import space_of
from ditplan.planner.simulation.chrome_trace import chrome_trace
from ditplan.planner.simulation.pipefusion_timeline import staged_timeline
from ditplan.planner.simulation.simulator import Row
from ditplan.planner.simulation.timeline import Timeline
from ditplan.planner.space.approximations import ApproximationPolicy
from ditplan.planner.space.enumerate import evenly_staged
from ditplan.planner.space.legality import schedule_of
from ditplan.planner.task import Task
from ditplan.profiles.backends import find_backend
from ditplan.profiles.catalog import find_cluster, find_model
from ditplan.profiles.cluster import ClusterProfile
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.cost_constants import CostConstants
from ditplan.profiles.mesh import Mesh, placement_of
from ditplan.profiles.model import Mode
from ditplan.profiles.trace_events import FIRST_THREADS
from tests.unit.planner_factories import WORKLOAD, a_cluster, a_device, ranks, sd3_like

SPEC = sd3_like()
MODES: tuple[Mode, ...] = ("eager", "compile", "graph", "compile+graph")
ONE_PASS = WORKLOAD.model_copy(update={"passes": 1})
STEPS = 7


def busy_s(timeline: Timeline, row: Row) -> dict[str, float]:
    """What a row spends on each category in the steps that are shown."""
    found: defaultdict[str, float] = defaultdict(float)
    for task, step in zip(timeline.tasks, timeline.step_of, strict=True):
        if row in task.rows and step < timeline.shown_steps:
            found[task.category] += task.duration_s
    return dict(found)


def assert_equals_the_price(model: CostModel, candidate: Configuration) -> None:
    workload = model.spec.defaults.model_copy(update={"steps": STEPS})
    candidate = model.balanced(candidate, workload)
    price, timeline = model.price(candidate, workload), model.timeline(candidate, workload)
    assert timeline.total_s == pytest.approx(price.latency_s, rel=1e-6), str(candidate)
    assert timeline.steps == STEPS
    if candidate.pipefusion:
        return
    (row,) = timeline.ranks
    repeats = timeline.steps / timeline.shown_steps
    found = {part: seconds * repeats for part, seconds in busy_s(timeline, row).items()}
    waited_s = timeline.total_s - sum(found.values())
    assert found.get("ring", 0.0) + waited_s == pytest.approx(price.parts.get("ring", 0.0))
    for part in (found.keys() | price.parts.keys()) - {"ring"}:
        assert found.get(part, 0.0) == pytest.approx(price.parts.get(part, 0.0)), part


@pytest.mark.parametrize("cluster", ["8xa100-nvlink", "2x8xl40-pcie-eth100"])
@pytest.mark.parametrize("model", ["sd3.5-medium", "wan2.1-1.3b", "hunyuandit"])
def test_the_simulated_loop_takes_what_the_price_says(model: str, cluster: str) -> None:
    """Two attentions in a block, calls for each pass, the folded schedule: every kind of axis, mode
    and placement.
    """
    spec, profile = find_model(model), find_cluster(cluster)
    task = Task(spec, spec.defaults, profile, modes=MODES, allowed=ApproximationPolicy())
    topology = Topology(profile)
    candidates = space_of(task, topology).candidates
    cost = CostModel(topology, spec)
    for candidate in candidates[:: max(1, len(candidates) // 30)]:
        assert_equals_the_price(cost, candidate)


@pytest.mark.parametrize("model", ["sana", "flux-dev"])
def test_so_it_does_on_cpus_that_send_what_they_do_not_compute(model: str) -> None:
    spec = find_model(model)
    topology = Topology(a_cluster(hosts=2, devices=4, device=a_device(kind="cpu")))
    cost = CostModel(topology, spec)
    for mesh in (Mesh(), Mesh(ring=4), Mesh(ulysses=2, ring=3), Mesh(ring=2, ulysses=4)):
        assert_equals_the_price(cost, Configuration(mesh, ranks(mesh)))
    if model == "flux-dev":
        for patches in (2, 3, 8):
            mesh = Mesh(pipefusion=3, ulysses=2)
            part = evenly_staged(mesh, spec, patches, 2)
            assert_equals_the_price(cost, Configuration(mesh, ranks(mesh), pipefusion=part))


@pytest.mark.parametrize(
    ("bytes_per_s", "slower"),
    [(1e9, (True, True)), (2.4e10, (True, False)), (1e12, (False, False))],
)
@pytest.mark.parametrize(("name", "kind"), [("A100", "cuda"), ("H100", "cuda"), ("a CPU", "cpu")])
def test_a_ring_takes_what_its_loop_does(
    bytes_per_s: float, slower: tuple[bool, bool], name: str, kind: str
) -> None:
    """Four blocks: a transfer runs beside the attention to a block and its merging, and the next
    one begins after both; the first block needs no merging, the last no transfer. CPUs, and GPUs
    whose attention waits for a transfer, first send.
    """
    large = ONE_PASS.model_copy(update={"height": 4096, "width": 4096})
    cluster = a_cluster(
        1, 4, bytes_per_s, device=a_device(name=name, kind=kind), inside_kind="pcie"
    )
    candidate, constants = (
        Configuration(Mesh(ring=4), ranks(Mesh(ring=4)), "graph"),
        CostConstants(),
    )
    topology = Topology(cluster)
    share = share_of(candidate.mesh, SPEC, large)
    work = RankWork(topology, SPEC, None, constants)
    step = Step(candidate, large, share, cluster.devices[0], work.place(candidate))
    activities = work.activities.of_block(step, SPEC.blocks[0])
    (ring,) = (one for one in activities if isinstance(one, RingAttention))
    attend_s, merge_s, send_s = (one.seconds for one in (ring.attend, ring.merge, ring.sent.timed))
    if name == "A100":
        assert (send_s > attend_s, send_s > attend_s + merge_s) == slower
        expected_s = max(attend_s, send_s) + 2 * max(attend_s + merge_s, send_s)
        expected_s += attend_s + merge_s
    else:
        expected_s = 4 * attend_s + 3 * (send_s + merge_s)
    timeline = CostModel(topology, SPEC).timeline(candidate, large)
    spans = [
        span
        for task, span in zip(timeline.tasks, timeline.spans, strict=True)
        if task.name.startswith("joint 0") and task.category in ("attention", "ring")
    ]
    taken_s = max(span.end_s for span in spans[:10]) - spans[0].start_s
    assert taken_s == pytest.approx(expected_s)


@pytest.mark.parametrize(("model", "expected"), [("qwen-image", "gather"), ("flux-dev", "pass")])
def test_a_ring_of_masked_keys_gathers_them_over_any_link(model: str, expected: str) -> None:
    spec, mesh = find_model(model), Mesh(ring=4)
    cost = CostModel(a_cluster(devices=4, inside_kind="pcie"), spec)
    candidate = Configuration(mesh, ranks(mesh))
    assert cost.ring_variant(candidate) == expected
    names = {task.name for task in cost.timeline(candidate, spec.defaults).tasks}
    assert any("all_gather" in name for name in names if "0:" in name) == (expected == "gather")
    assert any("merge" in name for name in names) == (expected == "pass")


def test_two_groups_over_one_link_take_twice_as_long_as_one() -> None:
    """Ulysses between two hosts, of one pass or of both at once: two samples over one cable."""
    topology = Topology(a_cluster(hosts=2, devices=2, between_bytes_per_s=1e8))
    alone = Configuration(Mesh(ulysses=2), (0, 2), "graph")
    together = Mesh(cfg=2, ulysses=2)
    order = ("dp", "ulysses", "pipefusion", "ring", "cfg")
    both = Configuration(together, placement_of(together, order), "graph", order)
    model = CostModel(topology, SPEC)
    one = model.timeline(alone, ONE_PASS)
    two = model.timeline(both, WORKLOAD)
    cable = Row("links", "ethernet")
    assert busy_s(two, cable)["ulysses"] == pytest.approx(
        2 * busy_s(one, cable)["ulysses"], rel=0.01
    )


def equal_stages(stages: int, patches: int, steps: int) -> Timeline:
    """A pipeline of tasks of a second, after a warm-up step of as many seconds as patches, over
    links that take no time.
    """
    times = LoopTimes(
        warmup_steps=1,
        warm_s=[float(patches)] * stages,
        warm_back_s=[],
        warm_hop_s=[0.0] * (stages - 1),
        told_s=0.0,
        warm_passes_s=0.0,
        warm_scheduler_s=0.0,
        setup_s=0.0,
        steps=steps,
        patched=Durations([[1.0] * patches] * stages, [[0.0] * patches] * stages, [0.0] * patches),
        scheduler_s=0.0,
        agreement_s=0.0,
        sending_computes=False,
    )
    topology = Topology(a_cluster(devices=stages))
    return staged_timeline(topology, [tuple(range(stages))], [], times)


@pytest.mark.parametrize("stages", [2, 3, 8])
@pytest.mark.parametrize("more", [0, 3])
def test_as_many_patches_as_stages_leave_no_bubbles_between_steps(stages: int, more: int) -> None:
    patches, steps = stages + more, 6
    timeline = equal_stages(stages, patches, steps)
    for number, row in enumerate(timeline.ranks):
        spans = [
            span
            for task, span in zip(timeline.tasks, timeline.spans, strict=True)
            if row in task.rows and task.name.startswith("patch") and task.category == "compute"
        ]
        assert len(spans) == steps * patches
        assert all(a.end_s == b.start_s for a, b in itertools.pairwise(spans))
        assert spans[0].start_s == stages * patches + number
    assert timeline.total_s == stages * patches + steps * patches + stages - 1


def test_with_one_step_the_bubble_is_that_of_filling_and_draining() -> None:
    timeline = equal_stages(stages=4, patches=6, steps=1)
    patched_s = timeline.total_s - 4 * 6
    assert 1 - 6 / patched_s == pytest.approx(3 / (6 + 3))


def trace_of(cluster: ClusterProfile, mesh: Mesh, patches: int = 8) -> dict[str, Any]:
    part = evenly_staged(mesh, SPEC, patches, 2)
    candidate = Configuration(mesh, ranks(mesh), "graph", pipefusion=part)
    timeline = CostModel(cluster, SPEC).timeline(candidate, WORKLOAD)
    text = chrome_trace(timeline, candidate, "a test")
    found = json.loads(text)
    assert isinstance(found, dict)
    assert found["otherData"]["latency_s"] == timeline.total_s
    return found


def rows_of(trace: dict[str, Any], process: str) -> dict[int, str]:
    """Names of a process' rows by thread."""
    named = [event for event in trace["traceEvents"] if event["ph"] == "M"]
    (pid,) = (e["pid"] for e in named if e["name"] == "process_name" and process in str(e["args"]))
    return {
        e["tid"]: e["args"]["name"] for e in named if e["pid"] == pid and e["name"] == "thread_name"
    }


@pytest.mark.parametrize("mesh", [Mesh(cfg=2, ring=2, ulysses=2), Mesh(cfg=2, pipefusion=4)])
def test_the_trace_has_a_row_for_each_rank_and_slices_that_never_overlap(mesh: Mesh) -> None:
    trace = trace_of(a_cluster(hosts=2, devices=4, inside_kind="pcie"), mesh)
    ranks_drawn, links = rows_of(trace, "ranks"), rows_of(trace, "links")
    names = [ranks_drawn[thread] for thread in sorted(ranks_drawn)]
    assert [name.partition(" (")[0] for name in names] == [f"rank {rank}" for rank in range(8)]
    assert names[5].startswith("rank 5 (cfg 1, ")
    # Perfetto draws threads of one number on one row, and 0 on any
    assert not ranks_drawn.keys() & links.keys()
    assert 0 not in ranks_drawn.keys() | links.keys()
    by_row: defaultdict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for event in trace["traceEvents"]:
        if event["ph"] == "X":
            by_row[event["pid"], event["tid"]].append((event["ts"], event["dur"]))
    assert len(by_row) == len(links) + 8
    for slices in by_row.values():
        for (start, length), (following, _) in itertools.pairwise(slices):
            assert length > 0
            assert round(1000 * (start + length)) <= round(1000 * following)


def test_the_trace_says_which_steps_it_shows() -> None:
    cluster = a_cluster(devices=4)
    for mesh, shown in ((Mesh(ulysses=4), 3), (Mesh(pipefusion=4), 5)):
        trace = trace_of(cluster, mesh)
        assert trace["otherData"]["steps_shown"] == f"1 to {shown} of 20"
        steps = {e["args"]["step"] for e in trace["traceEvents"] if e["ph"] == "X"}
        assert steps == set(range(1, shown + 1))


def test_links_are_named_by_host_and_kind() -> None:
    cluster = a_cluster(hosts=2, devices=2, inside_kind="pcie")
    exact = rows_of(trace_of(cluster, Mesh(ring=4)), "links")
    assert set(exact.values()) == {"h0/pcie", "h1/pcie", "ethernet"}
    staged = rows_of(trace_of(cluster, Mesh(pipefusion=4)), "links")
    assert {"stage 0 to 1 (h0/pcie)", "stage 1 to 2 (ethernet, h0/pcie, h1/pcie)"} <= set(
        staged.values()
    )


def test_many_ranks_that_do_the_same_are_one_row() -> None:
    cluster = a_cluster(hosts=32, devices=4)
    one = rows_of(trace_of(cluster, Mesh(cfg=2, ring=8, ulysses=8)), "ranks")
    assert one == {FIRST_THREADS["ranks"]: "all: 128 ranks from 0 on"}
    stages = rows_of(trace_of(cluster, Mesh(cfg=2, pipefusion=8, ulysses=8)), "ranks")
    assert list(stages.values())[1] == "stage 1: 16 ranks from 8 on"
    assert len(stages) == 8
    assert len(rows_of(trace_of(cluster, Mesh(ring=128)), "links")) == 2


@pytest.mark.parametrize(
    ("model", "mesh", "warmup"),
    [("sd3", Mesh(pipefusion=4), 1), ("hunyuandit", Mesh(pipefusion=4), 15_000)],
)
def test_a_long_loop_costs_what_is_shown_and_takes_what_the_price_says(
    model: str, mesh: Mesh, warmup: int
) -> None:
    spec, cluster = find_model(model), find_cluster("8xa100-nvlink")
    workload = spec.defaults.model_copy(update={"steps": 20_000})
    schedule = schedule_of(spec, find_backend("native").capabilities)
    part = evenly_staged(mesh, spec, 4, warmup, schedule)
    candidate = Configuration(mesh, placement_of(mesh), "compile", pipefusion=part)
    cost_model = CostModel(cluster, spec)
    timeline = cost_model.timeline(candidate, workload)
    assert timeline.total_s == pytest.approx(
        cost_model.price(candidate, workload).latency_s, rel=1e-3
    )
    text = chrome_trace(timeline, candidate, "a title")
    assert len(text) < 200_000
    assert json.loads(text)["otherData"]["steps_shown"].endswith(" of 20000")
    # the first steps are those of a short loop
    short = cost_model.timeline(
        replace(candidate, pipefusion=evenly_staged(mesh, spec, 4, min(warmup, 10), schedule)),
        workload.model_copy(update={"steps": 30}),
    )
    shown = [n for n, step in enumerate(timeline.step_of) if step < timeline.shown_steps]
    assert [timeline.tasks[n].name for n in shown] == [
        task.name
        for task, step in zip(short.tasks, short.step_of, strict=True)
        if step < timeline.shown_steps
    ]
