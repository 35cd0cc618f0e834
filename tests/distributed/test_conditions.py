"""ControlNets, IP-Adapters, pictures: whatever the mesh, one device's result."""

import pytest
import torch
from torch.utils._pytree import tree_map

from ditplan.profiles.configuration import PipeFusion
from ditplan.profiles.errors import InputError
from ditplan.profiles.family import family_of
from ditplan.profiles.mesh import Mesh
from ditplan.runtime.ranks.pool import RankPool
from ditplan.testing.on_ranks import latents_of_call
from tests.distributed.condition_models import (
    CONDITIONED,
    CONTROL_NETS,
    adapted_pipeline,
    conditioned,
    residuals_of,
)
from tests.distributed.condition_tasks import (
    CONTROLLED,
    adapted_latents,
    animated_latents,
    controlled_latents,
)
from tests.distributed.family_models import small
from tests.distributed.family_tasks import step_alone, step_outputs
from tests.distributed.rank_tasks import furthest
from tests.distributed.small_models import plan_for, workload
from tests.distributed.test_families import inputs_for

EXACT = 1e-4
SEQUENCES = [Mesh(ulysses=2), Mesh(ring=2), Mesh(ring=2, ulysses=2)]


def meshes_of(transformer_class: str) -> list[Mesh]:
    """Meshes of two and four ranks by each axis that a family's calls can be split over."""
    embedded = family_of(transformer_class).guidance == "embedded"
    passes = [Mesh(dp=2), Mesh(dp=2, ulysses=2)] if embedded else [Mesh(dp=2), Mesh(cfg=2, ring=2)]
    return [*SEQUENCES, *passes]


@pytest.mark.parametrize("name", CONTROL_NETS)
def test_residuals_of_a_controlnet_are_split_with_samples_and_tokens(
    ranks: RankPool, name: str
) -> None:
    spec = small(name)
    plain = inputs_for(name)
    inputs = [given | residuals_of(name, spec, given) for given in plain]
    alone = step_alone(spec, inputs)
    assert float((alone - step_alone(spec, plain)).abs().max()) > 100 * EXACT
    meshes = meshes_of(spec.transformer_class)
    work = workload(passes=1 if family_of(spec.transformer_class).guidance == "embedded" else 2)
    plans = [plan_for(spec, mesh, work) for mesh in meshes]
    inputs = [given | residuals_of(name, spec, given) for given in plain]
    results = ranks.run(step_outputs, spec, plans, inputs, timeout_s=240)
    for number, mesh in enumerate(meshes):
        assert furthest(alone, [of_rank[number] for of_rank in results]) <= EXACT, mesh


@pytest.mark.parametrize("name", CONDITIONED)
def test_what_is_given_of_a_picture_is_split_with_samples_and_tokens(
    ranks: RankPool, name: str
) -> None:
    spec, inputs = conditioned(name)
    alone = step_alone(spec, inputs)
    meshes = meshes_of(spec.transformer_class)
    work = workload(passes=1 if family_of(spec.transformer_class).guidance == "embedded" else 2)
    plans = [plan_for(spec, mesh, work) for mesh in meshes]
    results = ranks.run(step_outputs, spec, plans, inputs, timeout_s=240)
    for number, mesh in enumerate(meshes):
        assert furthest(alone, [of_rank[number] for of_rank in results]) <= EXACT, mesh


@pytest.mark.parametrize("name", CONTROLLED)
def test_a_pipeline_with_a_controlnet_gives_the_latents_of_one_device(
    ranks: RankPool, name: str
) -> None:
    spec = small(name)
    embedded = family_of(spec.transformer_class).guidance == "embedded"
    work = workload(height=32, width=48, passes=1 if embedded else 2, batch=2 if embedded else 1)
    meshes = [Mesh(dp=2) if embedded else Mesh(cfg=2), *SEQUENCES[:2]]
    plans = [plan_for(spec, mesh, work) for mesh in (Mesh(), *meshes)]
    plans.append(plan_for(spec, Mesh(ulysses=2), work).configured(weights="sharded"))
    results = ranks.run(controlled_latents, name, plans, timeout_s=240)
    alone = results[0][0]
    without = ranks.run(controlled_latents, name, plans[:1], 0.0, timeout_s=240)[0][0]
    assert furthest(alone, [without]) > 100 * EXACT
    for number, plan in enumerate(plans[1:], 1):
        far = furthest(alone, [of_rank[number] for of_rank in results])
        assert far <= EXACT, plan.configuration


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_an_ip_adapter_gives_the_latents_of_one_device(ranks: RankPool, name: str) -> None:
    spec = small(name)
    embedded = name == "flux"
    work = workload(passes=1 if embedded else 2, batch=3 if embedded else 1)
    pipeline, more = adapted_pipeline(name)
    alone = latents_of_call(pipeline, spec, work, **more)
    black = tree_map(torch.zeros_like, more)
    assert furthest(alone, [latents_of_call(pipeline, spec, work, **black)]) > 100 * EXACT
    meshes = [*SEQUENCES, *([Mesh(dp=2, ulysses=2)] if embedded else [Mesh(cfg=2, ring=2)])]
    plans = [plan_for(spec, mesh, work) for mesh in meshes]
    plans.append(plan_for(spec, Mesh(ulysses=2), work).configured(weights="sharded"))
    results = ranks.run(adapted_latents, name, plans, timeout_s=240)
    for number, plan in enumerate(plans):
        far = furthest(alone, [of_rank[number] for of_rank in results])
        assert far <= EXACT, plan.configuration


def test_an_ip_adapter_under_compiled_blocks(ranks: RankPool) -> None:
    spec, work = small("flux"), workload(passes=1, steps=1)
    pipeline, more = adapted_pipeline("flux")
    alone = latents_of_call(pipeline, spec, work, **more)
    plan = plan_for(spec, Mesh(ulysses=2), work).configured(mode="compile")
    plan = plan.model_copy(update={"fallback": "refuse"})
    results = ranks.run(adapted_latents, "flux", [plan], timeout_s=600)
    assert furthest(alone, [of_rank[0] for of_rank in results]) <= EXACT


def test_fluxs_adapter_runs_in_patches_and_sd3s_is_refused(ranks: RankPool) -> None:
    work = workload(passes=1)
    spec = small("flux")
    pipeline, more = adapted_pipeline("flux")
    alone = latents_of_call(pipeline, spec, work, **more)
    part = PipeFusion(blocks_per_stage=(1, 3), patches=3, warmup_steps=work.steps)
    plan = plan_for(spec, Mesh(pipefusion=2, ulysses=2), work, pipefusion=part)
    assert (
        furthest(
            alone, [one[0] for one in ranks.run(adapted_latents, "flux", [plan], timeout_s=240)]
        )
        <= EXACT
    )
    part = PipeFusion(blocks_per_stage=(1, 2), patches=3, warmup_steps=work.steps)
    plan = plan_for(small("sd3"), Mesh(pipefusion=2, ulysses=2), workload(), pipefusion=part)
    said = r"ip_adapter_image_embeds can't be given with pipefusion: .* use a plan with"
    with pytest.raises(InputError, match=said):
        ranks.run(adapted_latents, "sd3", [plan], timeout_s=240)


def test_a_first_frame_that_is_given_stays_in_its_place(ranks: RankPool) -> None:
    spec, _ = conditioned("token-replace")
    work = workload(passes=1, height=64, width=80, frames=9)
    plans = [plan_for(spec, mesh, work) for mesh in (Mesh(), *SEQUENCES)]
    results = ranks.run(animated_latents, plans, timeout_s=240)
    alone = results[0][0]
    for number, mesh in enumerate(SEQUENCES, 1):
        assert furthest(alone, [of_rank[number] for of_rank in results]) <= EXACT, mesh
    part = PipeFusion(blocks_per_stage=(2, 2), patches=2, warmup_steps=1)
    plan = plan_for(spec, Mesh(pipefusion=2, ulysses=2), work, pipefusion=part)
    with pytest.raises(InputError, match=r"steps latents of .* patches can't be told apart; use"):
        ranks.run(animated_latents, [plan], timeout_s=240)


def test_residuals_of_another_picture_size_are_refused(ranks: RankPool) -> None:
    spec = small("qwen-image")
    residuals = {"controlnet_block_samples": [torch.zeros(2, 64, 80)]}
    inputs = [given | residuals for given in inputs_for("qwen-image")]
    plan = plan_for(spec, Mesh(ulysses=4), workload())
    said = "img_in has 63 image tokens and controlnet_block_samples has 64"
    with pytest.raises(InputError, match=said):
        ranks.run(step_outputs, spec, [plan], inputs, timeout_s=240)
