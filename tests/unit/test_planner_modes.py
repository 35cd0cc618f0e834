"""Execution modes: which are searched, what they cost, and what a plan says of them."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditplan.planner.cost.memory import memory_of
from ditplan.planner.cost_model import CostModel
from ditplan.planner.network.topology import Topology
from ditplan.planner.search.policy import MeasurementPolicy, RunResult
from ditplan.planner.search.pricing import price_all
from ditplan.planner.search.search import search
from ditplan.planner.task import Task
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.cost_constants import CostConstants
from ditplan.profiles.errors import InputError
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import AttentionKernel, Mode, ModelProfile, TimePoint
from ditplan.profiles.plan import ExecutionPlan
from tests.unit.planner_factories import WORKLOAD, a_cluster, a_device, a_profile, sd3_like

SPEC = sd3_like()
TASK = Task(SPEC, WORKLOAD, a_cluster())
ON_CPUS = replace(TASK, cluster=a_cluster(device=a_device(kind="cpu")))
MODES: tuple[Mode, ...] = ("eager", "compile", "graph", "compile+graph")
ONE = Configuration(Mesh(), (0,))


def points(mode: Mode, seconds: float, host_s: float | None = None) -> tuple[TimePoint, ...]:
    """A block of the whole workload on one device, in a mode."""
    profile = a_profile({(2, 4096, 4429): seconds})
    changes = {"mode": mode, "host_s": host_s, "text_tokens": 333}
    return tuple(point.model_copy(update=changes) for point in profile.points)


def profile_of(*found: tuple[TimePoint, ...]) -> ModelProfile:
    """A profile of all these points."""
    whole = tuple(point for some in found for point in some)
    return a_profile({(1, 64, 64): 1.0}).model_copy(update={"points": whole})


def loop_s(profile: ModelProfile, mode: Mode) -> float:
    """Predicted seconds of one device."""
    model = CostModel(a_cluster(), SPEC, profile)
    return model.price(replace(ONE, mode=mode), WORKLOAD).latency_s


def test_all_modes_are_searched_on_gpus_and_eager_alone_on_cpus() -> None:
    for task, modes in ((TASK, set(MODES)), (ON_CPUS, {"eager"})):
        priced, _ = price_all(task, Topology(task.cluster))
        assert {ranked.configuration.mode for ranked in priced} == modes


def test_compiled_blocks_are_searched_on_cpus_when_demanded() -> None:
    priced, _ = price_all(replace(ON_CPUS, modes=("compile",)), Topology(ON_CPUS.cluster))
    assert {ranked.configuration.mode for ranked in priced} == {"compile"}


def test_a_graph_demanded_on_cpus_is_refused() -> None:
    with pytest.raises(InputError, match="can't run mode graph on CPUs; there it has eager, comp"):
        search(replace(ON_CPUS, modes=("graph",)))


def test_a_demanded_mode_is_not_to_be_replaced_and_a_chosen_one_may_be() -> None:
    assert search(TASK).to_plan().fallback == "eager"
    demanded = search(replace(TASK, modes=("graph",))).to_plan()
    assert (demanded.configuration.mode, demanded.fallback) == ("graph", "refuse")


def test_what_is_measured_may_not_fall_back() -> None:
    run: list[ExecutionPlan] = []

    def measure(plan: ExecutionPlan) -> RunResult:
        run.append(plan)
        return RunResult(1.0 + len(run))

    ranking = search(TASK, MeasurementPolicy(measure, top=3, rounds=1))
    assert {plan.fallback for plan in run} == {"refuse"}
    assert ranking.to_plan().fallback == "eager"


def test_no_more_than_two_modes_of_a_mesh_are_run() -> None:
    run: list[ExecutionPlan] = []

    def measure(plan: ExecutionPlan) -> RunResult:
        run.append(plan)
        return RunResult(1.0)

    search(TASK, MeasurementPolicy(measure, top=3, rounds=1))
    predicted = [plan.mesh for plan in run if plan.configuration.mode != "eager"]
    assert len(predicted) == 3
    assert all(predicted.count(mesh) <= 2 for mesh in predicted)


@pytest.mark.parametrize("slow_host", [True, False])
def test_a_measured_block_that_waited_for_its_launches_waits_once(slow_host: bool) -> None:
    block_s, host_s = (2e-3, 2e-3) if slow_host else (2e-3, 1e-3)
    found = loop_s(profile_of(points("eager", block_s, host_s)), "eager")
    blocks_s = 24 * WORKLOAD.steps * block_s
    assert blocks_s < found < 1.1 * blocks_s


def test_launches_take_the_measured_time_of_the_host() -> None:
    quick, slow = (profile_of(points("eager", 1e-3, host_s)) for host_s in (0.5e-3, 3e-3))
    assert loop_s(slow, "eager") > 2.5 * loop_s(quick, "eager")


def test_a_graph_is_no_slower_than_what_it_captured() -> None:
    eager, graph = points("eager", 3e-3, 3e-3), points("graph", 2e-3)
    profile = profile_of(eager, graph)
    assert loop_s(profile, "graph") < loop_s(profile, "eager")
    assert loop_s(profile, "graph") == pytest.approx(24 * WORKLOAD.steps * 2e-3, rel=0.1)


def test_a_mode_that_was_not_measured_is_as_efficient_as_the_one_most_like_it() -> None:
    def ratio(mode: Mode, profile: ModelProfile) -> float:
        bare = CostModel(a_cluster(), SPEC).price(replace(ONE, mode=mode), WORKLOAD)
        found = CostModel(a_cluster(), SPEC, profile).price(replace(ONE, mode=mode), WORKLOAD)
        assert found.source != "measured" or mode == "compile"
        return (found.parts["blocks"] + found.parts["attention"]) / (
            bare.parts["blocks"] + bare.parts["attention"]
        )

    profile = profile_of(points("compile", 5e-3, 1e-4))
    assert ratio("compile+graph", profile) == pytest.approx(ratio("compile", profile))


@given(
    seconds=st.dictionaries(st.sampled_from(["eager", "compile"]), st.floats(1e-4, 1e-2)),
    host_s=st.floats(0, 1e-2),
    captured_s=st.none() | st.floats(1e-4, 1e-2),
)
def test_a_graph_that_was_not_measured_is_no_slower_than_what_it_captures(
    seconds: dict[Mode, float], host_s: float, captured_s: float | None
) -> None:
    found = [points(mode, max(block_s, host_s), host_s) for mode, block_s in seconds.items()]
    found += [points("compile+graph", captured_s)] if captured_s else []
    profile = profile_of(*found) if found else None
    model = CostModel(a_cluster(), SPEC, profile)
    pairs: list[tuple[Mode, Mode]] = [("graph", "eager")]
    pairs += [] if captured_s else [("compile+graph", "compile")]
    for graph, plain in pairs:
        graph_s, plain_s = (
            model.price(replace(ONE, mode=mode), WORKLOAD).latency_s for mode in (graph, plain)
        )
        assert graph_s <= plain_s * (1 + 1e-9)


def test_a_graph_that_was_not_measured_has_none_of_the_waiting_that_eager_had() -> None:
    waited, quick = points("eager", 5e-3, 5e-3), points("compile", 2e-3, 2e-4)
    both, alone = profile_of(waited, quick), profile_of(quick)
    assert loop_s(both, "graph") == pytest.approx(loop_s(alone, "graph"))
    assert loop_s(both, "eager") > 1.5 * loop_s(both, "graph")


def test_the_outside_is_launched_and_scaled_like_blocks() -> None:
    def outside(mode: Mode, seconds: float, host_s: float | None) -> tuple[TimePoint, ...]:
        found = points(mode, seconds, host_s)
        return tuple(point.model_copy(update={"part": "outside"}) for point in found)

    blocks = points("eager", 1e-3, 1e-3)
    quick, slow = (profile_of(blocks, outside("eager", 4e-3, host_s)) for host_s in (1e-3, 44e-3))
    waits_s = loop_s(slow, "eager") - loop_s(quick, "eager")
    assert waits_s == pytest.approx(WORKLOAD.steps * 40e-3, rel=0.05)
    model = CostModel(a_cluster(), SPEC, quick)
    for mode in MODES:
        parts = model.price(replace(ONE, mode=mode), WORKLOAD).parts
        assert parts["outside"] == pytest.approx(WORKLOAD.steps * 4e-3, rel=0.05)


def test_a_graph_takes_no_less_than_its_replay() -> None:
    profile = profile_of(*(points(mode, 1e-7) for mode in ("eager", "graph")))
    c = CostConstants()
    assert loop_s(profile, "graph") >= WORKLOAD.steps * c.replay_launches * c.launch_s


def test_a_graph_holds_its_buffers_and_no_second_copy_of_activations() -> None:
    large = WORKLOAD.model_copy(update={"height": 2048, "width": 2048})
    eager, graph = (
        memory_of(SPEC, large, replace(ONE, mode=mode), a_device()) for mode in ("eager", "graph")
    )
    assert graph.activations_bytes == eager.activations_bytes
    assert 0 < graph.total_bytes - eager.total_bytes < eager.activations_bytes


def attentions(**seconds: float) -> tuple[TimePoint, ...]:
    """The self-attention of the whole workload on one device, by kernel."""
    (point,) = points("eager", 1.0)
    return tuple(
        point.model_copy(update={"part": "attention", "kernel": kernel, "median_s": found})
        for kernel, found in seconds.items()
    )


@pytest.mark.parametrize(("cudnn_s", "chosen"), [(1e-3, "cudnn"), (3e-3, "flash")])
def test_the_plan_records_the_attention_kernel_that_was_fastest(
    cudnn_s: float, chosen: AttentionKernel
) -> None:
    profile = profile_of(points("eager", 2e-3, 1e-3), attentions(flash=2e-3, cudnn=cudnn_s))
    assert search(replace(TASK, profile=profile)).to_plan().configuration.attention == chosen


@pytest.mark.parametrize("others", [(8, 4429), (2, 64), (1, 4429)])
def test_the_attention_kernel_is_chosen_at_the_nearest_shape(others: tuple[int, int]) -> None:
    """Of two that are equally far, batches 1 and 4 around 2, kernels are compared at one."""
    equally_far = others == (1, 4429)
    near = at_shape(4 if equally_far else 2, 4429, flash=2e-3, efficient=3e-3)
    far = at_shape(*others, cudnn=1e-6)
    profile = profile_of(points("eager", 2e-3, 1e-3), near, far)
    task = replace(TASK, profile=profile, gpus=1)
    assert search(task).to_plan().configuration.attention == "flash"


def at_shape(batch: int, key_tokens: int, **seconds: float) -> tuple[TimePoint, ...]:
    """That self-attention with other samples and keys."""
    changes = {"batch": batch, "key_tokens": key_tokens}
    return tuple(point.model_copy(update=changes) for point in attentions(**seconds))


def test_without_measurement_the_attention_kernel_is_left_to_torch() -> None:
    assert search(TASK).to_plan().configuration.attention == "auto"


@pytest.mark.parametrize(("kind", "variant"), [("nvlink", "gather"), ("pcie", "pass")])
def test_a_ring_gathers_keys_over_nvlink_and_passes_them_on_elsewhere(
    kind: str, variant: str
) -> None:
    task = replace(TASK, cluster=a_cluster(inside_kind=kind), pins={"ring": 2})
    assert search(task).to_plan().configuration.ring == variant


def test_a_ring_over_nvlink_between_hosts_passes_keys_on() -> None:
    """Other hosts' memory is out of reach for the runtime's pushes."""
    known = a_cluster(hosts=2, devices=1)
    links = tuple(link.model_copy(update={"kind": "nvlink"}) for link in known.links)
    cluster = known.model_copy(update={"links": links})
    task = replace(TASK, cluster=cluster, pins={"ring": 2})
    assert search(task).to_plan().configuration.ring == "pass"


def test_rule_of_thumb_is_compared_in_the_mode_in_which_it_is_fastest() -> None:
    priced, _ = price_all(TASK, Topology(TASK.cluster))
    (baseline,) = (ranked for ranked in priced if ranked.is_baseline)
    alike = [r for r in priced if r.configuration.mesh == baseline.configuration.mesh]
    assert {ranked.configuration.mode for ranked in alike} == set(MODES)
    assert baseline.prediction.latency_s == min(r.prediction.latency_s for r in alike)
