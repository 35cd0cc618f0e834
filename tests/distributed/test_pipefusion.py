"""PipeFusion under unmodified pipelines: whatever the mesh, the loop that is written by hand."""

import io
import itertools
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import psutil
import pytest
import torch
from PIL import Image

from ditplan.profiles.configuration import PipeFusion
from ditplan.profiles.errors import InputError
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import ExecutionPlan
from ditplan.profiles.workload import Workload
from ditplan.runtime.generation import generate, measure_plan
from ditplan.runtime.models.loading import prompt_embeddings
from ditplan.runtime.ranks.devices import device_name
from ditplan.runtime.ranks.pool import RankError, RankPool
from ditplan.testing.on_ranks import latents_of_call
from tests.distributed.patch_reference import by_hand
from tests.distributed.patch_tasks import (
    die_while_denoising,
    graphs_held,
    latents_of_calls,
    latents_of_interrupted_call,
    latents_with_controlnet,
    left_on_pipeline,
    lively_pipeline,
    patched_latents,
    steps_seen,
)
from tests.distributed.rank_tasks import changes_left, furthest, latents, latents_and_compiles
from tests.distributed.small_models import plan_for, small_flux, small_sd3, workload

EXACT = 1e-4
STEPS = 5
MESHES = [
    Mesh(pipefusion=2),
    Mesh(pipefusion=3),
    Mesh(pipefusion=4),
    Mesh(cfg=2, pipefusion=2),
    Mesh(pipefusion=2, ring=2),
    Mesh(pipefusion=2, ulysses=2),
]
MIXED = Mesh(cfg=2, pipefusion=2)
SPLIT: dict[int, tuple[int, ...]] = {2: (1, 3), 3: (1, 2, 1), 4: (1, 1, 1, 1)}


def stages(*blocks: int, patches: int = 3, warmup_steps: int = 2) -> PipeFusion:
    """A pipeline of stages of so many blocks."""
    return PipeFusion(blocks_per_stage=blocks, patches=patches, warmup_steps=warmup_steps)


def uneven() -> ModelSpec:
    """Four blocks, five heads; with `workload()`, of 63 image and 7 text tokens, little divides."""
    return small_sd3(num_layers=4)


def even() -> ModelSpec:
    """Four blocks, four heads."""
    return small_sd3(num_layers=4, num_attention_heads=4, caption_projection_dim=64)


EVEN_WORK: dict[str, object] = {"height": 32, "width": 32, "text_tokens": 8}
DUAL = {"dual_attention_layers": [0, 2], "qk_norm": "rms_norm"}


class References:
    """Latents by hand and of one device, computed once for all meshes."""

    def __init__(self) -> None:
        self._pipelines: dict[tuple[str, str], Any] = {}
        self._found: dict[tuple[object, ...], torch.Tensor] = {}

    def by_hand(
        self, spec: ModelSpec, work: Workload, like: PipeFusion, scheduler: str = "", **more: Any
    ) -> torch.Tensor:
        """The latents of a loop over steps and patches."""
        of = (spec.config_hash, work, like.patches, like.warmup_steps, scheduler, *more)
        pipeline = self._pipeline(spec, scheduler)
        return self._once(of, lambda: by_hand(pipeline, spec, work, like, **more))

    def alone(
        self, spec: ModelSpec, work: Workload, scheduler: str = "", **more: Any
    ) -> torch.Tensor:
        """The latents of the unmodified pipeline."""
        of = (spec.config_hash, work, scheduler, *more)
        return self._once(
            of, lambda: latents_of_call(self._pipeline(spec, scheduler), spec, work, **more)
        )

    def _pipeline(self, spec: ModelSpec, scheduler: str) -> Any:
        key = (spec.config_hash, scheduler)
        if key not in self._pipelines:
            self._pipelines[key] = lively_pipeline(spec, scheduler)
        return self._pipelines[key]

    def _once(self, key: tuple[object, ...], compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        if key not in self._found:
            self._found[key] = compute()
        return self._found[key]


@pytest.fixture(scope="module")
def references() -> Iterator[References]:
    # threads would wait for each other longer than they compute
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield References()
    torch.set_num_threads(threads)


def run(
    ranks: RankPool, spec: ModelSpec, plans: list[ExecutionPlan], scheduler: str = "", **more: Any
) -> list[list[torch.Tensor | None]]:
    """Each plan's latents on all ranks."""
    found = ranks.run(patched_latents, spec, plans, scheduler, timeout_s=600, **more)
    assert all(
        sum(of_rank[number] is not None for of_rank in found) == plan.mesh.size
        for number, plan in enumerate(plans)
    )
    return [list(of_plan) for of_plan in zip(*found, strict=True)]


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_every_mesh_gives_the_latents_of_the_loop_by_hand_with_uneven_parts(
    ranks: RankPool, references: References, mesh: Mesh
) -> None:
    spec, work = uneven(), workload(steps=STEPS)
    split = SPLIT[mesh.pipefusion]
    used = [stages(*split), stages(*split[::-1], patches=4, warmup_steps=1)]
    results = run(ranks, spec, [plan_for(spec, mesh, work, None, part) for part in used])
    for part, of_plan in zip(used, results, strict=True):
        assert furthest(references.by_hand(spec, work, part), of_plan) <= EXACT


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_every_mesh_gives_the_latents_of_the_loop_by_hand_with_even_parts(
    ranks: RankPool, references: References, mesh: Mesh
) -> None:
    spec, work = even(), workload(steps=STEPS, **EVEN_WORK)
    part = stages(*(SPLIT | {2: (2, 2)})[mesh.pipefusion], patches=2)
    plan = plan_for(spec, mesh, work, None, part)
    assert furthest(references.by_hand(spec, work, part), run(ranks, spec, [plan])[0]) <= EXACT


@pytest.mark.parametrize("mesh", [*MESHES[3:], Mesh(pipefusion=3)], ids=str)
def test_dual_attention_and_normalized_keys_are_kept_as_by_hand(
    ranks: RankPool, references: References, mesh: Mesh
) -> None:
    spec, work = small_sd3(**DUAL), workload(steps=STEPS)
    part = stages(*{2: (1, 2), 3: (1, 1, 1)}[mesh.pipefusion])
    plan = plan_for(spec, mesh, work, None, part)
    assert furthest(references.by_hand(spec, work, part), run(ranks, spec, [plan])[0]) <= EXACT


@pytest.mark.parametrize(
    ("mesh", "split"),
    [
        (Mesh(pipefusion=2), (1, 3)),
        (Mesh(pipefusion=3), (1, 2, 1)),
        (Mesh(pipefusion=2, ring=2), (3, 1)),
        (Mesh(pipefusion=2, ulysses=2), (2, 2)),
    ],
    ids=str,
)
def test_flux_gives_the_latents_of_the_loop_by_hand(
    ranks: RankPool, references: References, mesh: Mesh, split: tuple[int, ...]
) -> None:
    spec, work, part = small_flux(), workload(passes=1, steps=STEPS), stages(*split)
    plan = plan_for(spec, mesh, work, None, part)
    assert furthest(references.by_hand(spec, work, part), run(ranks, spec, [plan])[0]) <= EXACT


@pytest.mark.parametrize("variant", ["gather", "bidirectional"])
def test_every_ring_of_fresh_keys_gives_the_latents_of_the_loop_by_hand(
    ranks: RankPool, references: References, variant: str
) -> None:
    spec, work, part = uneven(), workload(steps=STEPS), stages(1, 3)
    plan = plan_for(spec, Mesh(pipefusion=2, ring=2), work, None, part).configured(ring=variant)
    assert furthest(references.by_hand(spec, work, part), run(ranks, spec, [plan])[0]) <= EXACT


def test_two_calls_a_step_keep_keys_of_their_own(ranks: RankPool, references: References) -> None:
    spec, work, part = small_flux(), workload(passes=1, steps=STEPS), stages(1, 3)
    negative = prompt_embeddings(spec, work, torch.device("cpu"), seed=2)
    more: dict[str, Any] = {f"negative_{name}": words for name, words in negative.items()}
    plan = plan_for(spec, Mesh(pipefusion=2, ulysses=2), work, None, part)
    found = run(ranks, spec, [plan], true_cfg_scale=4.0, **more)[0]
    by_hand = references.by_hand(spec, work, part, true_cfg_scale=4.0, **more)
    assert furthest(by_hand, found) <= EXACT


@pytest.mark.parametrize(
    ("mesh", "placement"),
    [
        (Mesh(pipefusion=4), (3, 2, 1, 0)),
        (Mesh(cfg=2, pipefusion=2), (2, 0, 3, 1)),
        (Mesh(pipefusion=2, ring=2), (0, 2, 1, 3)),
        (Mesh(pipefusion=2, ulysses=2), (1, 3, 2, 0)),
    ],
    ids=str,
)
def test_any_placement_gives_the_latents_of_the_loop_by_hand(
    ranks: RankPool, references: References, mesh: Mesh, placement: tuple[int, ...]
) -> None:
    spec, work = uneven(), workload(steps=STEPS)
    part = stages(*SPLIT[mesh.pipefusion])
    plan = plan_for(spec, mesh, work, placement, part)
    assert furthest(references.by_hand(spec, work, part), run(ranks, spec, [plan])[0]) <= EXACT


@pytest.mark.parametrize("scheduler", ["dpm", "unipc"])
def test_multistep_solvers_step_each_patch_as_by_hand(
    ranks: RankPool, references: References, scheduler: str
) -> None:
    spec, work, part = uneven(), workload(steps=STEPS), stages(1, 3)
    plan = plan_for(spec, MIXED, work, None, part)
    found = run(ranks, spec, [plan], scheduler)[0]
    assert furthest(references.by_hand(spec, work, part, scheduler), found) <= EXACT


@pytest.mark.parametrize("scheduler", ["stochastic", "sde"])
def test_noise_drawn_by_a_scheduler_is_that_of_one_device(
    ranks: RankPool, references: References, scheduler: str
) -> None:
    spec, work = uneven(), workload(steps=STEPS)
    plan = plan_for(spec, MIXED, work, None, stages(1, 3, warmup_steps=STEPS))
    alone = references.alone(spec, work, scheduler)
    assert furthest(alone, run(ranks, spec, [plan], scheduler)[0]) <= EXACT
    assert furthest(alone, [references.alone(spec, work)]) > 100 * EXACT


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_only_warm_up_steps_or_only_one_patch_is_one_device(
    ranks: RankPool, references: References, mesh: Mesh
) -> None:
    spec, work = uneven(), workload(steps=STEPS)
    split = SPLIT[mesh.pipefusion]
    used = [stages(*split, warmup_steps=STEPS), stages(*split, patches=1, warmup_steps=1)]
    results = run(ranks, spec, [plan_for(spec, mesh, work, None, part) for part in used])
    for of_plan in results:
        assert furthest(references.alone(spec, work), of_plan) <= EXACT


@pytest.mark.parametrize("patches", [2, 4])
def test_more_warm_up_steps_bring_latents_closer_to_one_device(
    ranks: RankPool, references: References, patches: int
) -> None:
    spec, work = uneven(), workload(steps=STEPS)
    alone = references.alone(spec, work)
    plans = [
        plan_for(spec, MIXED, work, None, stages(1, 3, patches=patches, warmup_steps=warmup_steps))
        for warmup_steps in range(1, STEPS + 1)
    ]
    distances = [
        float((found - alone).norm() / alone.norm())
        for found, *_ in run(ranks, spec, plans)
        if found is not None
    ]
    assert len(distances) == STEPS
    assert all(b <= 1.05 * a for a, b in itertools.pairwise(distances)), distances
    assert distances[0] > 1e-2
    assert distances[-1] < 1e-5


def test_the_comparison_notices_other_warm_up_steps_other_patches_and_fresh_keys(
    references: References,
) -> None:
    specs = [(uneven(), workload(steps=STEPS)), (small_flux(), workload(passes=1, steps=STEPS))]
    for spec, work in specs:
        right = references.by_hand(spec, work, stages(1, 3))
        others = [stages(1, 3, warmup_steps=1), stages(1, 3, warmup_steps=3)]
        others.append(stages(1, 3, patches=2))
        wrong = [references.by_hand(spec, work, other) for other in others]
        for found in (*wrong, references.alone(spec, work)):
            assert furthest(right, [found]) > 100 * EXACT


def test_the_loop_by_hand_is_one_device_where_nothing_is_stale(references: References) -> None:
    specs = [
        (small_sd3(**DUAL), workload(steps=STEPS)),
        (small_flux(), workload(passes=1, steps=STEPS)),
    ]
    for spec, work in specs:
        for part in (stages(1, 2, warmup_steps=STEPS), stages(1, 2, patches=1, warmup_steps=1)):
            found = references.by_hand(spec, work, part)
            assert furthest(references.alone(spec, work), [found]) <= EXACT


def test_calls_of_one_plan_leave_nothing_stale_to_each_other(
    ranks: RankPool, references: References
) -> None:
    spec, part = uneven(), stages(1, 3)
    works = [
        workload(steps=STEPS),
        workload(steps=STEPS),
        workload(steps=STEPS, text_tokens=11),
        workload(steps=STEPS, **EVEN_WORK),
        workload(steps=STEPS, batch=2),
        workload(steps=STEPS),
    ]
    plan = plan_for(spec, Mesh(pipefusion=2, ulysses=2), works[0], None, part)
    for of_rank in ranks.run(latents_of_calls, spec, plan, works, timeout_s=600):
        assert torch.equal(of_rank[0], of_rank[1])
        for work, found in zip(works, of_rank, strict=True):
            assert furthest(references.by_hand(spec, work, part), [found]) <= EXACT


@pytest.mark.parametrize("batch", [2, 3])
def test_pictures_split_over_dp_are_those_of_the_loop_by_hand(
    ranks: RankPool, references: References, batch: int
) -> None:
    spec, work, part = uneven(), workload(steps=STEPS, batch=batch), stages(1, 3)
    plan = plan_for(spec, Mesh(dp=2, pipefusion=2), work, None, part)
    assert furthest(references.by_hand(spec, work, part), run(ranks, spec, [plan])[0]) <= EXACT


def test_plans_one_after_the_other_in_one_process_group_do_not_disturb_each_other(
    ranks: RankPool, references: References
) -> None:
    spec, work = uneven(), workload(steps=STEPS)
    pipes = [
        (Mesh(pipefusion=2, ulysses=2), stages(1, 3)),
        (Mesh(ulysses=4), None),
        (Mesh(pipefusion=2, ulysses=2), stages(3, 1, patches=4, warmup_steps=1)),
        (Mesh(), None),
        (MIXED, stages(1, 3)),
        (Mesh(pipefusion=2, ulysses=2), stages(1, 3)),
    ]
    plans = [plan_for(spec, mesh, work, None, part) for mesh, part in pipes]
    for (_, part), of_plan in zip(pipes, run(ranks, spec, plans), strict=True):
        alone = references.alone(spec, work)
        expected = alone if part is None else references.by_hand(spec, work, part)
        assert furthest(expected, of_plan) <= EXACT


@pytest.mark.parametrize("scheduler", ["", "normalised"])
def test_a_closed_plan_leaves_the_pipeline_as_it_was_even_when_a_call_was_refused(
    ranks: RankPool, scheduler: str
) -> None:
    spec, work = uneven(), workload(steps=STEPS)
    plan = plan_for(spec, Mesh(pipefusion=2, ulysses=2), work, None, stages(1, 3))
    assert ranks.run(changes_left, spec, plan, timeout_s=600) == [[]] * 4
    assert ranks.run(left_on_pipeline, spec, plan, scheduler, timeout_s=600) == [[]] * 4


@pytest.mark.parametrize("mesh", [Mesh(ulysses=2), Mesh(pipefusion=2)], ids=str)
def test_graphs_go_with_their_plan(ranks: RankPool, mesh: Mesh) -> None:
    part = stages(1, 3) if mesh.pipefusion > 1 else None
    plan = plan_for(uneven(), mesh, workload(steps=STEPS), None, part)
    plan = plan.configured(mode="graph")
    for during, after in ranks.run(graphs_held, uneven(), plan, timeout_s=600)[:2]:
        assert (during > 0, after) == (True, 0)


def test_weights_that_compiled_code_moves_within_a_call_are_no_change(ranks: RankPool) -> None:
    # a spec of its own: its kept pipeline hasn't had its weights moved by another test
    spec = small_sd3(num_layers=5)
    plan = plan_for(spec, Mesh(pipefusion=2), workload(steps=STEPS), None, stages(2, 3))
    plan = plan.configured(mode="compile+graph")
    assert all(during for during, _ in ranks.run(graphs_held, spec, plan, timeout_s=600)[:2])


def refusal(ranks: RankPool, task: Any, *args: Any, **kwargs: Any) -> str:
    """What all ranks refuse with one voice; they can go on afterwards."""
    with pytest.raises(InputError) as caught:
        ranks.run(task, *args, timeout_s=600, **kwargs)
    spec, work = uneven(), workload(steps=2)
    plan = plan_for(spec, MIXED, work, None, stages(1, 3, warmup_steps=1))
    run(ranks, spec, [plan])
    return str(caught.value)


def plan_with(part: PipeFusion, mesh: Mesh = MIXED, **work: object) -> ExecutionPlan:
    return plan_for(uneven(), mesh, workload(**({"steps": STEPS} | work)), None, part)


def on_step_end(*_: Any) -> dict[str, Any]:
    """A callback, which must not be called."""
    raise AssertionError


def test_a_callback_at_each_step_is_refused(ranks: RankPool) -> None:
    plans = [plan_with(stages(1, 3))]
    said = refusal(ranks, patched_latents, uneven(), plans, callback_on_step_end=on_step_end)
    assert "callback_on_step_end expects the latents of one step" in said
    assert "pipefusion 1" in said


def test_an_interrupted_call_is_an_error_not_half_a_picture(ranks: RankPool) -> None:
    said = refusal(ranks, latents_of_interrupted_call, uneven(), plan_with(stages(1, 3)))
    assert "ended before its last step" in said


@pytest.mark.parametrize("scheduler", ["normalised", "dpm thresholding", "unipc thresholding"])
def test_schedulers_that_mix_tokens_are_refused(ranks: RankPool, scheduler: str) -> None:
    said = refusal(ranks, patched_latents, uneven(), [plan_with(stages(1, 3))], scheduler)
    assert "mixes tokens" in said


def test_residuals_of_controlnets_are_refused(ranks: RankPool) -> None:
    said = refusal(ranks, latents_with_controlnet, uneven(), plan_with(stages(1, 3)))
    assert "block_controlnet_hidden_states can't be given with pipefusion" in said


def test_more_patches_than_tokens_are_refused(ranks: RankPool) -> None:
    said = refusal(ranks, patched_latents, uneven(), [plan_with(stages(1, 3, patches=64))])
    assert "63 tokens can't be cut into 64 patches" in said
    assert "fewer patches" in said


def test_patches_with_fewer_tokens_than_ranks_are_refused(ranks: RankPool) -> None:
    plan = plan_with(stages(1, 3, patches=40), Mesh(pipefusion=2, ulysses=2))
    said = refusal(ranks, patched_latents, uneven(), [plan])
    assert "can't be split over 2 ranks" in said
    assert "fewer patches" in said


def test_stages_that_do_not_make_up_the_model_are_refused(ranks: RankPool) -> None:
    said = refusal(ranks, patched_latents, uneven(), [plan_with(stages(1, 2))])
    assert said.startswith("the plan's stages have 1 + 2 blocks, the model has 4")


def test_a_call_that_only_later_steps_make_is_refused(ranks: RankPool) -> None:
    # skip-layer guidance begins in the second step
    plan = plan_with(stages(1, 3, warmup_steps=1), Mesh(pipefusion=2, ring=2))
    more: dict[str, Any] = {"skip_guidance_layers": [0], "skip_layer_guidance_stop": 1.0}
    said = refusal(ranks, patched_latents, uneven(), [plan], **more)
    assert "number 2 in a step was not made in a warm-up step" in said


def test_skip_layer_guidance_at_a_stage_boundary_is_that_of_one_device(
    ranks: RankPool, references: References
) -> None:
    spec, work = uneven(), workload(steps=STEPS)
    used = [stages(1, 3, warmup_steps=STEPS), stages(2, 2, patches=1)]
    plans = [plan_for(spec, Mesh(pipefusion=2, ring=2), work, None, part) for part in used]
    more: dict[str, Any] = {"skip_guidance_layers": [0, 1], "skip_layer_guidance_stop": 1.0}
    alone = references.alone(spec, work, **more)
    assert furthest(alone, [references.alone(spec, work)]) > 100 * EXACT
    for of_plan in run(ranks, spec, plans, **more):
        assert furthest(alone, of_plan) <= EXACT


def test_compiled_stages_give_what_eager_ones_give_and_are_compiled_once(ranks: RankPool) -> None:
    spec, work = small_sd3(num_layers=2), workload(steps=4)
    eager = plan_for(spec, Mesh(pipefusion=2), work, None, stages(1, 1, patches=2))
    plan = eager.configured(mode="compile").model_copy(update={"fallback": "refuse"})
    expected = ranks.run(latents, spec, eager, timeout_s=600)[0]
    found = ranks.run(latents_and_compiles, spec, [plan, plan], latents, timeout_s=600)
    for (first, compiles), (second, more_compiles) in found[:2]:
        assert furthest(expected, [first, second]) <= EXACT
        assert compiles > 0
        assert more_compiles == 0


def test_the_clock_sees_every_step_on_every_rank(ranks: RankPool) -> None:
    plan = plan_with(stages(1, 3), Mesh(pipefusion=2, ulysses=2))
    for steps, seconds in ranks.run(steps_seen, uneven(), plan, timeout_s=600):
        assert steps == STEPS
        assert seconds > 0


def test_a_plan_with_stages_is_measured_and_draws_the_picture_of_its_patches(
    ranks: RankPool,
) -> None:
    spec, work = small_sd3(), workload(steps=STEPS)
    devices = tuple(ranks.run(device_name, timeout_s=600))

    def drawn(mesh: Mesh, part: PipeFusion | None) -> torch.Tensor:
        plan = plan_for(spec, mesh, work, None, part)
        here = plan.fingerprint.model_copy(update={"devices": devices})
        plan = plan.model_copy(update={"fingerprint": here})
        made = ranks.run(generate, spec, None, plan, "a cat", 0, ".png", timeout_s=600)
        assert [of_rank is not None for of_rank in made].count(True) == mesh.size
        (file,) = itertools.chain.from_iterable(of_rank[1] for of_rank in made if of_rank)
        with Image.open(io.BytesIO(file)) as picture:
            return torch.from_numpy(numpy.array(picture, dtype=numpy.float32))

    alone = drawn(Mesh(), None)
    warm = drawn(Mesh(pipefusion=3), stages(1, 1, 1, warmup_steps=STEPS))
    assert furthest(alone, [warm]) <= 1
    part = stages(2, 1)
    first = drawn(Mesh(pipefusion=2), part)
    again = drawn(Mesh(pipefusion=2, ulysses=2), part)
    assert furthest(first, [again]) <= 1
    plan = plan_for(spec, Mesh(pipefusion=2), work, None, part)
    runs = ranks.run(measure_plan, spec, None, plan, timeout_s=600)
    assert [of_rank is not None for of_rank in runs] == [True, True, False, False]
    assert all(of_rank.latency_s > 0 for of_rank in runs if of_rank is not None)


def test_a_last_stage_that_dies_in_the_middle_of_the_pipeline_ends_all() -> None:
    rank, plan = 1, plan_with(stages(1, 3), Mesh(pipefusion=2))
    with RankPool(None, 2, "cpu") as pool:
        pool.run(patched_latents, uneven(), [plan], timeout_s=600)
        processes, began = pool.processes(), time.monotonic()
        with pytest.raises(RankError, match=f"rank {rank} died of SIGKILL") as caught:
            pool.run(die_while_denoising, uneven(), plan, rank, timeout_s=600)
        assert time.monotonic() - began < 30
        assert caught.value.ranks == (rank,)
        assert not [process for process in processes if psutil.pid_exists(process)]
    shutil.rmtree(Path(str(caught.value).rpartition("Their logs: ")[2]))
