"""PipeFusion in the planner: what it costs and holds, which settings are tried, what plans say."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditplan.planner.cost.memory import memory_of
from ditplan.planner.cost.profile_points import wanted_points
from ditplan.planner.cost.roofline import block_size
from ditplan.planner.cost.share import patch_shares, point_share
from ditplan.planner.cost_model import CostModel
from ditplan.planner.network.topology import Topology
from ditplan.planner.report import candidate_json, tune_json
from ditplan.planner.search.policy import MeasurementPolicy, RunResult
from ditplan.planner.search.pricing import price_all, price_one
from ditplan.planner.search.search import search
from ditplan.planner.search.storage import study_name
from ditplan.planner.space.approximations import STEP_CACHES, ApproximationPolicy
from ditplan.planner.space.enumerate import enumerate_space, evenly_staged, patching_violation
from ditplan.planner.task import Task, allowed_for
from ditplan.profiles.backends import find_backend
from ditplan.profiles.catalog import find_cluster, find_model, known_quality
from ditplan.profiles.configuration import Configuration, PipeFusion
from ditplan.profiles.cost_constants import CostConstants
from ditplan.profiles.errors import InputError
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import Mode, ModelSpec, PointRequest
from ditplan.profiles.plan import ExecutionPlan
from ditplan.profiles.splits import patch_bounds
from ditplan.profiles.workload import Workload
from tests.unit.planner_factories import WORKLOAD, a_cluster, a_device, a_profile, ranks, sd3_like
from tests.unit.test_planner_search import table_text

SPEC = sd3_like()
FLUX = find_model("flux-dev")
TASK = Task(SPEC, WORKLOAD, a_cluster(devices=4), modes=("eager",), allowed=ApproximationPolicy())
MODES = st.sampled_from(["eager", "compile", "graph", "compile+graph"])
MESHES = st.builds(
    Mesh,
    cfg=st.integers(1, 2),
    pipefusion=st.integers(2, 5),
    ring=st.integers(1, 2),
    ulysses=st.integers(1, 3),
)
SETTINGS = st.tuples(st.integers(1, 9), st.integers(1, 4))


def staged(
    mesh: Mesh, patches: int, warmup_steps: int = 1, mode: Mode = "eager", spec: ModelSpec = SPEC
) -> Configuration:
    """The mesh on the first ranks with about as many blocks in each stage."""
    part = evenly_staged(mesh, spec, patches, warmup_steps)
    return Configuration(mesh, ranks(mesh), mode, pipefusion=part)


@settings(max_examples=60)
@given(mesh=MESHES, mode=MODES, setting=SETTINGS, kind=st.sampled_from(["cuda", "cpu"]))
def test_parts_sum_to_the_latency(
    mesh: Mesh, mode: Mode, setting: tuple[int, int], kind: str
) -> None:
    model = CostModel(a_cluster(hosts=8, devices=8, device=a_device(kind=kind)), SPEC)
    found = model.price(model.balanced(staged(mesh, *setting, mode), WORKLOAD), WORKLOAD)
    assert math.fsum(found.parts.values()) == pytest.approx(found.latency_s)
    assert {"bubbles", "sends"} <= found.parts.keys()
    assert all(seconds >= 0 for seconds in found.parts.values())
    assert found.interval_s[0] < found.latency_s < found.interval_s[1]


@settings(max_examples=40)
@given(mesh=MESHES, setting=SETTINGS, inside=st.floats(1, 50), between=st.floats(1, 50))
def test_more_bandwidth_never_hurts(
    mesh: Mesh, setting: tuple[int, int], inside: float, between: float
) -> None:
    candidate = staged(mesh, *setting)
    slow = CostModel(a_cluster(8, 8), SPEC).price(candidate, WORKLOAD).latency_s
    faster = a_cluster(8, 8, 200e9 * inside, 2e9 * between)
    assert CostModel(faster, SPEC).price(candidate, WORKLOAD).latency_s <= slow * (1 + 1e-9)


NO_TEXT = WORKLOAD.model_copy(update={"text_tokens": 0, "passes": 1})
NOTHING_ELSE = CostConstants(
    launch_s=0.0, scheduler_step_s=0.0, patch_switch_s=0.0, patch_setup_s=0.0
)
BLOCKS_ALONE = SPEC.model_copy(
    update={"outside_parameters": 0, "outside_image_flops": 0, "outside_text_flops": 0}
)


@pytest.mark.parametrize("stages", [2, 3, 4])
@pytest.mark.parametrize("warmup", [1, 3, 20])
def test_equal_stages_take_their_patches_a_fill_and_a_warm_up(stages: int, warmup: int) -> None:
    """The closed form, from measured blocks of a patch and of the whole sequence."""
    points = {(1, 1024, 4096): 9e-4, (1, 4096, 4096): 3e-3}
    mesh = Mesh(pipefusion=stages)
    model = CostModel(a_cluster(devices=4), BLOCKS_ALONE, a_profile(points), constants=NOTHING_ELSE)
    found = model.price(staged(mesh, 4, warmup), NO_TEXT)
    patch_s, whole_s, steps = 24 / stages * 9e-4, 24 / stages * 3e-3, 20 - warmup
    fill_s = (stages - 1) * patch_s if steps else 0.0
    expected_s = warmup * stages * whole_s + steps * 4 * patch_s + fill_s
    assert found.latency_s - found.parts["sends"] == pytest.approx(expected_s, rel=1e-4)
    busy_s = found.parts["blocks"] + found.parts["attention"]
    assert busy_s == pytest.approx(warmup * whole_s + steps * 4 * patch_s)


@pytest.mark.parametrize("warmup", [1, 20])
def test_patches_are_prepared_once_if_there_are_any(warmup: int) -> None:
    candidate = staged(Mesh(pipefusion=4), 4, warmup)
    without, with_it = (
        CostModel(a_cluster(devices=4), SPEC, constants=replace(NOTHING_ELSE, patch_setup_s=s))
        for s in (0.0, 0.5)
    )
    more_s = 0.0 if warmup == 20 else 0.5
    found, before = (model.price(candidate, WORKLOAD) for model in (with_it, without))
    assert found.latency_s - before.latency_s == pytest.approx(more_s)
    assert with_it.timeline(candidate, WORKLOAD).total_s == pytest.approx(found.latency_s)


@pytest.mark.parametrize("mode", ["graph", "compile+graph"])
def test_every_step_a_warm_up_step_computes_what_one_device_does(mode: Mode) -> None:
    """Blocks once, what is outside of them on each stage."""
    model = CostModel(a_cluster(devices=4), SPEC)
    one = model.price(Configuration(Mesh(), (0,), mode), WORKLOAD).parts
    found = model.price(staged(Mesh(pipefusion=4), 4, 20, mode), WORKLOAD)
    scheduler_s = found.parts["scheduler"]
    computed_s = found.latency_s - found.parts["sends"] - scheduler_s
    expected_s = one["blocks"] + one["attention"] + 4 * one["outside"]
    assert computed_s == pytest.approx(expected_s, rel=0.01)
    assert scheduler_s > 5 * one["scheduler"]


def test_a_patch_attends_to_all_keys_and_text_goes_with_the_first() -> None:
    mesh = Mesh(pipefusion=2, ring=2, ulysses=3)
    shares = patch_shares(mesh, SPEC, WORKLOAD, 5)
    sizes = [end - start for start, end in patch_bounds(4096, 333, 5)]
    for patch, (share, size) in enumerate(zip(shares, sizes, strict=True)):
        assert share.tokens["image"] == math.ceil(size / 6)
        assert share.tokens["text"] == (0 if patch else math.ceil(333 / 6))
        assert share.keys == {"image": 4096, "text": 333}
        assert share.predicted == size
    assert shares[1].queries["text"] == 0


def test_bytes_on_the_link_are_those_of_a_count() -> None:
    """Two stages: hidden states one way, predictions back, and in the warm-up to all."""
    found = CostModel(a_cluster(), SPEC).price(staged(Mesh(pipefusion=2), 4, 2), WORKLOAD)
    samples, width, values = 2, 24 * 64, 64
    onward = samples * (4096 + 333) * width * 2
    back = samples * 4096 * values * 2
    assert found.link_bytes["nvlink"] == 20 * onward + 20 * back


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_folded_stages_compute_the_same_and_send_there_and_back(stages: int) -> None:
    mesh, model = Mesh(pipefusion=stages), CostModel(a_cluster(devices=4), SPEC)
    linear, folded = (
        model.price(Configuration(mesh, ranks(mesh), "graph", pipefusion=part), WORKLOAD)
        for part in (
            evenly_staged(mesh, SPEC, 6, 2),
            evenly_staged(mesh, SPEC, 6, 2, "folded"),
        )
    )
    assert math.fsum(folded.parts.values()) == pytest.approx(folded.latency_s)
    for part in ("blocks", "attention"):
        assert folded.parts[part] == pytest.approx(linear.parts[part])
    # a stage's forward begins anew each time that a patch comes by
    assert folded.parts["outside"] == pytest.approx(2 * linear.parts["outside"], rel=1e-6)
    samples, width, values, hops = 2, 24 * 64, 64, stages - 1
    onward, back = samples * (4096 + 333) * width * 2, samples * 4096 * values * 2
    assert linear.link_bytes["nvlink"] == 20 * hops * onward + (2 * hops + 18) * back
    assert folded.link_bytes["nvlink"] == 20 * hops * 2 * onward + 2 * hops * back
    assert folded.memory_bytes == linear.memory_bytes


def test_links_that_are_slower_than_stages_show_as_sends() -> None:
    mesh = Mesh(pipefusion=4)
    slow, fast = (
        CostModel(a_cluster(hosts=4, devices=1, between_bytes_per_s=rate), SPEC)
        .price(staged(mesh, 4, mode="graph"), WORKLOAD)
        .parts
        for rate in (1e8, 1e13)
    )
    assert slow["sends"] > slow["blocks"]
    assert fast["sends"] < 0.05 * fast["blocks"]
    assert slow["bubbles"] == pytest.approx(fast["bubbles"])


def test_a_ring_passes_fresh_keys_on_behind_the_attention_to_stale_ones() -> None:
    """A transfer that takes 1.5 times the attention to its own block, of which a patch has a sixth.

    Without PipeFusion half as much again is waited for; patches hide all of it.
    """
    work = NO_TEXT.model_copy(update={"height": 2048, "width": 2048})

    def ring_s(candidate: Configuration, rate: float) -> tuple[float, float]:
        device = a_device(name="A100")
        cluster = a_cluster(1, 4, rate, device=device, inside_kind="pcie")
        parts = CostModel(cluster, SPEC).price(candidate, work).parts
        return parts["ring"], parts["attention"]

    exact, patched = (
        Configuration(Mesh(ring=2), ranks(Mesh(ring=2)), "graph"),
        staged(Mesh(pipefusion=2, ring=2), 6, mode="graph"),
    )
    _, attention_s = ring_s(exact, 1e13)
    block_s = attention_s / (24 * work.steps) / 2
    rate = 2 * 8192 * 1536 * 2 / (1.5 * block_s)
    waited_s = [ring_s(one, rate)[0] - ring_s(one, 1e13)[0] for one in (exact, patched)]
    assert waited_s[0] == pytest.approx(24 * work.steps * 0.5 * block_s, rel=0.1)
    # of the patched one the warm-up step waits: half of the blocks' on the busiest stage
    assert waited_s[1] == pytest.approx(12 * 0.5 * block_s, rel=0.1)


def test_a_hop_over_a_fast_link_takes_no_longer_because_others_cross_slow_ones() -> None:
    topology = Topology(a_cluster(hosts=2, devices=2))
    line = [(0, 1, 2, 3)]
    seconds = [topology.hops_s(2**24, line)[position].seconds for position in range(4)]
    assert seconds[0] == seconds[2] < seconds[1] / 20
    assert seconds[1] == seconds[3] == topology.collective_s("send_recv", 2**24, line).seconds


def test_pipefusion_beats_one_gpu_and_ulysses_over_pcie_as_published() -> None:
    """FLUX 1024px on 8 L40: 26 s with Ulysses-8, 18 s on one, 5.5 s with PipeFusion."""
    task = Task(FLUX, FLUX.defaults, find_cluster("2x8xl40-pcie-eth100"))
    ulysses, one, pipefusion = (
        price_one(task, mesh, "eager").prediction.latency_s
        for mesh in (Mesh(ulysses=8), Mesh(), Mesh(pipefusion=8))
    )
    assert pipefusion < one / 2
    assert pipefusion < ulysses / 2


def held_bytes(spec: ModelSpec, stages: int) -> int:
    """Weights, keys and values of the fullest of so many stages."""
    model = CostModel(a_cluster(devices=48), spec)
    candidate = staged(Mesh(pipefusion=stages), 48, spec=spec)
    memory = memory_of(spec, spec.defaults, model.balanced(candidate, spec.defaults), a_device())
    return memory.weights_bytes + memory.cache_bytes


def test_more_stages_never_hold_more_of_equal_blocks() -> None:
    held = [held_bytes(SPEC, stages) for stages in range(2, 25)]
    assert held == sorted(held, reverse=True)


def test_twice_the_stages_never_hold_more_of_blocks_that_differ() -> None:
    """One stage more may: divided by time, its cuts fall elsewhere between heavy and light ones."""
    for stages in range(2, 25):
        assert held_bytes(FLUX, 2 * stages) < held_bytes(FLUX, stages)


@pytest.mark.parametrize("ulysses", [1, 5])
def test_keys_and_values_of_the_whole_sequence_are_held(ulysses: int) -> None:
    """Of this stage's blocks, of the heads of the rank that has most."""
    candidate = staged(Mesh(pipefusion=4, ulysses=ulysses), 4)
    memory = memory_of(SPEC, WORKLOAD, candidate, a_device())
    heads = math.ceil(24 / ulysses)
    assert memory.cache_bytes == 6 * 2 * (4096 + 333) * heads * 64 * 2 * 2
    whole = memory_of(SPEC, WORKLOAD, Configuration(Mesh(), (0,)), a_device())
    assert whole.weights_bytes - memory.weights_bytes == 18 * SPEC.blocks[0].parameters * 2
    assert whole.cache_bytes == 0


def test_stages_are_divided_by_memory_where_time_would_not_fit() -> None:
    """FLUX's double blocks take about as long as its single ones and hold 2.4 times as much."""

    def priced(memory_bytes: int) -> tuple[tuple[int, ...], int, str | None]:
        cluster = a_cluster(devices=2, device=a_device(memory_bytes))
        found = price_one(Task(FLUX, FLUX.defaults, cluster), Mesh(pipefusion=2), "graph")
        assert found.configuration.pipefusion is not None
        stages = found.configuration.pipefusion.blocks_per_stage
        return stages, found.prediction.memory_bytes, found.too_big

    by_time, needed, _ = priced(80_000_000_000)
    assert max(by_time) - min(by_time) <= 1
    by_memory, less, why = priced(needed - 1_000_000_000)
    assert by_memory[0] < by_time[0] - 2
    assert less <= needed - 1_000_000_000
    assert why is None
    least, _, why = priced(20_000_000_000)
    assert why is not None
    assert "keys and values" in why
    assert least[0] <= by_memory[0]


def test_the_fullest_stage_s_number_is_in_what_is_dropped() -> None:
    cluster = a_cluster(devices=4, device=a_device(16_500_000_000))
    ranked, dropped = price_all(replace(TASK, cluster=cluster), Topology(cluster))
    fitting = [r for r in ranked if not r.too_big]
    whole = [r.configuration.mesh for r in fitting if r.configuration.weights == "replicated"]
    assert {mesh.pipefusion for mesh in whole} <= {2, 3, 4}
    assert dropped["does not fit in memory"] == len(ranked) - len(fitting) > 0


def test_without_leave_no_stages_are_tried_and_exact_ones_cost_what_they_did() -> None:
    exact = replace(TASK, allowed=None)
    without, _ = price_all(exact, Topology(TASK.cluster))
    with_stages, _ = price_all(TASK, Topology(TASK.cluster))
    assert all(ranked.configuration.pipefusion is None for ranked in without)
    same = [r for r in with_stages if r.configuration.pipefusion is None]
    assert {r.configuration: r.prediction for r in same} == {
        r.configuration: r.prediction for r in without
    }
    assert len(with_stages) > len(without)


@given(
    patches=st.integers(1, 40),
    warmup=st.integers(0, 25),
    ring=st.integers(1, 4),
    height=st.sampled_from([16, 64]),
    text=st.integers(0, 40),
)
def test_settings_are_legal_when_each_patch_has_a_token_for_each_rank(
    patches: int, warmup: int, ring: int, height: int, text: int
) -> None:
    workload = WORKLOAD.model_copy(update={"height": height, "width": 64, "text_tokens": text})
    tokens = height // 16 * 4
    legal = 1 <= warmup <= 20 and patches <= tokens
    if legal:
        bounds = patch_bounds(tokens, text, patches)
        legal = all(end - start >= ring for start, end in bounds)
    mesh = Mesh(pipefusion=2, ring=ring)
    found = patching_violation(mesh, SPEC, workload, patches, warmup)
    assert (found is None) == legal


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        (ApproximationPolicy(), {(2, 2, 1), (2, 3, 1), (2, 4, 1), (2, 8, 1),
                     (3, 3, 1), (3, 4, 1), (3, 6, 1), (3, 12, 1),
                     (4, 4, 1), (4, 5, 1), (4, 8, 1), (4, 16, 1)}),
        (ApproximationPolicy(patches=5), {(2, 5, 1), (3, 5, 1), (4, 5, 1)}),
        (ApproximationPolicy(patches=5, warmup_steps=3), {(2, 5, 3), (3, 5, 3), (4, 5, 3)}),
        (ApproximationPolicy(warmup_steps=21), set()),
    ],
)  # fmt: skip
def test_what_is_left_out_is_searched(
    allowed: ApproximationPolicy, expected: set[tuple[int, int, int]]
) -> None:
    topology = Topology(TASK.cluster)
    space = enumerate_space(SPEC, WORKLOAD, topology, 4, find_backend("native"), allowed=allowed)
    parts = [(c.mesh.pipefusion, c.pipefusion) for c in space.candidates if c.pipefusion]
    assert {(n, p.patches, p.warmup_steps) for n, p in parts} == expected
    assert len(set(space.candidates)) == len(space.candidates)
    assert bool(expected) == ("warm-up steps > steps" not in space.dropped)


TINY = find_model("sd3-tiny")


def test_a_bound_is_kept_by_what_was_measured() -> None:
    known = known_quality(TINY, TINY.defaults)
    assert known is not None
    distances = {(p.patches, p.warmup_steps): p.relative_l2 for p in known.points}
    for bound in (0.0, 0.05, 0.2):
        allowed = allowed_for(TINY, TINY.defaults, str(bound), known)
        assert allowed is not None
        expected = {setting for setting, distance in distances.items() if distance <= bound}
        assert set(allowed.settings(2)) == expected
        task = Task(TINY, TINY.defaults, a_cluster(), allowed=allowed, known=known)
        ranked, _ = price_all(task, Topology(task.cluster))
        for one in ranked:
            is_exact = not (one.configuration.pipefusion or one.configuration.step_cache)
            assert one.quality.exact == is_exact
            assert one.quality.exact or (one.quality.relative_l2 or 0.0) <= bound
        assert any(one.configuration.pipefusion for one in ranked) == bool(expected)


@pytest.mark.parametrize(
    "change", [{"steps": 21}, {"height": 256}, {"passes": 1}, {"text_tokens": 20}]
)
def test_a_number_of_another_workload_says_nothing(change: dict[str, int]) -> None:
    assert known_quality(TINY, TINY.defaults.model_copy(update=change)) is None
    assert known_quality(FLUX, FLUX.defaults) is None
    assert known_quality(TINY.model_copy(update={"config_hash": "x"}), TINY.defaults) is None


def test_batch_and_dtype_do_not_change_a_number() -> None:
    changed = TINY.defaults.model_copy(update={"batch": 3, "dtype": "float32"})
    assert known_quality(TINY, changed) is not None


@pytest.mark.parametrize(
    ("quality", "more", "words"),
    [
        ("0.1", {}, "takes a measurement, recorded in profiles/distances/sd3-like.json"),
        ("exact", {"patches": 4}, "give quality=safe"),
        ("safe", {"pipefusion": 1, "warmup_steps": 4}, "give pipefusion=2 or more"),
        ("any", {"warmup_steps": 21}, "there are 20 steps; use 1 to 20"),
        ("good", {}, "must be safe, exact, any or a number"),
        ("-0.1", {}, "must be safe, exact, any or a number"),
    ],
)
def test_what_cannot_be_allowed_is_refused_in_one_sentence(
    quality: str, more: dict[str, int], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        allowed_for(SPEC, WORKLOAD, quality, None, **more)


def test_safe_and_any_allow_pipefusion_and_exact_does_not() -> None:
    assert allowed_for(SPEC, WORKLOAD, "exact", None) is None
    assert allowed_for(SPEC, WORKLOAD, "safe", None) == ApproximationPolicy()
    with_caches = allowed_for(SPEC, WORKLOAD, "any", None, patches=3)
    assert with_caches == ApproximationPolicy(
        patches=3, step_caches=STEP_CACHES, prefers_exact=False
    )
    assert allowed_for(SPEC, WORKLOAD, "0.5", None, pipefusion=1) is None


def test_the_plan_holds_stages_and_quality_and_so_do_runner_ups() -> None:
    known = known_quality(TINY, TINY.defaults)
    allowed = ApproximationPolicy(patches=4, warmup_steps=3)
    task = Task(TINY, TINY.defaults, a_cluster(devices=2), allowed=allowed, known=known)
    found = search(replace(task, pins={"pipefusion": 2}))
    plan = found.to_plan()
    assert ExecutionPlan.from_json(plan.model_dump_json(), "plan") == plan
    assert plan.configuration.pipefusion == PipeFusion(
        blocks_per_stage=(4, 4), patches=4, warmup_steps=3
    )
    assert plan.quality.relative_l2 == 0.0607
    assert "captions" in (plan.quality.measured_with or "")
    assert not plan.quality.exact
    assert {r.configuration.pipefusion for r in plan.runner_ups} == {plan.configuration.pipefusion}
    row = candidate_json(found.best, "native")
    assert (row["patches"], row["warmup"], row["exact"], row["quality"]) == (4, 3, False, 0.0607)
    assert row["blocks_per_stage"] == [4, 4]


def test_a_model_without_a_number_says_so_in_its_plan() -> None:
    plan = search(replace(TASK, pins={"pipefusion": 2})).to_plan()
    assert not plan.quality.exact
    assert plan.quality.relative_l2 is None


def test_exact_plans_still_say_that_they_are() -> None:
    found = search(replace(TASK, allowed=None))
    assert found.to_plan().quality.exact
    best = tune_json(found)["best"]
    assert isinstance(best, dict)
    assert (best["patches"], best["warmup"], best["exact"]) == (1, 0, True)


def test_settings_of_pipefusion_are_candidates_of_their_own_in_a_study() -> None:
    ran: list[tuple[str, PipeFusion | None]] = []

    def measure(plan: ExecutionPlan) -> RunResult:
        ran.append((str(plan.mesh), plan.configuration.pipefusion))
        return RunResult(float(len(ran)))

    task = replace(TASK, pins={"pipefusion": 2, "ring": 1})
    found = search(task, MeasurementPolicy(measure, top=4, rounds=1))
    assert len(set(ran)) == len(ran) > 1
    assert all(part is not None for _, part in ran)
    assert len({r.configuration.key for r in found.ranked}) == len(found.ranked)
    tasks = [
        task,
        replace(task, allowed=None),
        replace(task, allowed=ApproximationPolicy(patches=4)),
    ]
    assert len({study_name(one) for one in tasks}) == 3


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_shows_patches_warm_up_and_stages(width: int) -> None:
    task = replace(
        TASK, spec=FLUX, workload=FLUX.defaults, allowed=ApproximationPolicy(warmup_steps=2)
    )
    text = table_text(search(task), width, rows=100)
    assert "4p 2w" in text
    assert "PipeFusion's patches" in text
    assert "\u2026" not in text


def test_what_is_asked_to_be_measured_of_patches_is_what_pricing_looks_up() -> None:
    mesh, patches, block = Mesh(cfg=2, pipefusion=2, ulysses=2), 4, SPEC.blocks[0]
    eager: tuple[Mode, ...] = ("eager",)
    plain = set(wanted_points(SPEC, WORKLOAD, {mesh}, eager))
    asked = set(wanted_points(SPEC, WORKLOAD, {mesh}, eager, {(mesh, patches)}))
    assert plain < asked

    def size(r: PointRequest) -> tuple[float, float]:
        return block_size(block, point_share(r.batch, r.image_share, r.text_share, r.key_tokens))

    sizes = [size(request) for request in asked - plain]
    for share in patch_shares(mesh, SPEC, WORKLOAD, patches):
        rows, pairs = block_size(block, share)
        assert any(
            abs(math.log(known / rows)) < 0.02 and abs(math.log(found / pairs)) < 0.02
            for known, found in sizes
        )


def test_patches_smaller_than_text_tokens_allow_are_not_asked_for() -> None:
    tiny = WORKLOAD.model_copy(update={"text_tokens": 20})
    mesh = Mesh(pipefusion=8, ulysses=2)
    asked = wanted_points(SPEC, tiny, {mesh}, ("eager",), {(mesh, 32)})
    assert all(request.ranks <= 20 for request in asked)


@pytest.mark.parametrize(
    ("mesh", "patches", "warmup", "words"),
    [
        (Mesh(pipefusion=2), None, 21, "there are 20 steps"),
        (Mesh(pipefusion=2), 4097, None, "at least one; use fewer patches"),
        (Mesh(cfg=2), 4, None, "give pipefusion=2 or more"),
        (Mesh(cfg=2), None, 1, "give pipefusion=2 or more"),
    ],
)
def test_one_configuration_that_cannot_be_says_why(
    mesh: Mesh, patches: int | None, warmup: int | None, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        price_one(TASK, mesh, "eager", patches=patches, warmup_steps=warmup)


def test_more_stages_than_blocks_are_refused() -> None:
    large = replace(TASK, cluster=a_cluster(hosts=4, devices=8))
    with pytest.raises(InputError, match="has 24 blocks: use at most 24"):
        price_one(large, Mesh(pipefusion=25), "eager")


def test_patches_left_out_are_as_many_as_stages_and_warm_up_is_one_step() -> None:
    found = price_one(replace(TASK, allowed=None), Mesh(pipefusion=4), "eager").configuration
    assert found.pipefusion is not None
    assert (found.pipefusion.patches, found.pipefusion.warmup_steps) == (4, 1)


def test_one_configuration_costs_what_it_costs_among_all() -> None:
    one = price_one(TASK, Mesh(cfg=2, pipefusion=2), "eager", patches=4)
    ranked, _ = price_all(TASK, Topology(TASK.cluster))
    assert (
        one.prediction == next(r for r in ranked if r.configuration == one.configuration).prediction
    )


@pytest.mark.parametrize("name", ["8xl20-pcie", "8xh100-nvlink"])
def test_search_ranks_all_settings_that_are_in_the_space(name: str) -> None:
    task = Task(FLUX, FLUX.defaults, find_cluster(name), allowed=ApproximationPolicy())
    found = search(task)
    assert len(found.ranked) > 100
    json.dumps(tune_json(found))


def test_a_long_loop_is_priced_as_fast_as_a_short_one() -> None:
    model = CostModel(a_cluster(devices=8), SPEC)
    candidate = staged(Mesh(pipefusion=8), 16, mode="graph")
    thousand = Workload.model_validate(WORKLOAD.model_dump() | {"steps": 1000})
    step_s = [
        model.price(candidate, thousand.model_copy(update={"steps": steps})).latency_s
        for steps in (100, 101, 1000)
    ]
    assert step_s[2] - step_s[0] == pytest.approx(900 * (step_s[1] - step_s[0]))
