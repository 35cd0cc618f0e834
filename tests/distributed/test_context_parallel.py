"""Plans run by diffusers' own context parallelism: one device's result, or a refusal in words."""

from typing import Any

import pytest
import torch

from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import ModelSpec
from ditplan.runtime.models.inspection import inspect_configs
from ditplan.runtime.ranks.pool import RankPool
from tests.distributed.context_parallel_tasks import (
    left_by_diffusers,
    outputs_by_diffusers,
    refusal_by_diffusers,
)
from tests.distributed.family_models import TRANSFORMERS, VIDEO_VAE, VIDEOS, small
from tests.distributed.family_tasks import inputs_of, step_alone
from tests.distributed.rank_tasks import furthest
from tests.distributed.small_models import SCHEDULER, VAE, plan_for, small_flux, workload

EXACT = 1e-4
FAMILIES = ("flux", "flux2", "qwen-image", "wan")


def even(name: str) -> ModelSpec:
    """A small model with four heads."""
    if name == "flux":
        return small_flux(num_attention_heads=4)
    vae: dict[str, Any] = VIDEO_VAE if name in VIDEOS else VAE
    config = TRANSFORMERS[name] | {"num_attention_heads": 4}
    return inspect_configs(f"even-{name}", config, vae, SCHEDULER, 0)


def inputs_for(spec: ModelSpec, masked: int = 0) -> list[dict[str, Any]]:
    """A step's inputs with 63 image tokens a frame and 7 of text; ids as pipelines give them."""
    frames = 3 if spec.transformer_class == "WanTransformer3DModel" else 1
    calls = 2 if spec.defaults.passes > 1 else 1
    found = [inputs_of(spec, frames=frames, masked=masked, seed=seed) for seed in range(calls)]
    for inputs in found:
        if not masked:
            inputs.pop("encoder_hidden_states_mask", None)
        if spec.transformer_class == "Flux2Transformer2DModel":
            for name in ("img_ids", "txt_ids"):
                inputs[name] = inputs[name][None].expand(2, -1, -1)
    return found


def cut_to_even(inputs: dict[str, Any]) -> dict[str, Any]:
    """A call's inputs with 60 image tokens and 4 of text; a video of 162 image tokens."""
    hidden = inputs["hidden_states"]
    if hidden.ndim == 5:
        return inputs | {"hidden_states": hidden[..., :12, :]}
    tokens = {"hidden_states": 60, "img_ids": 60, "encoder_hidden_states": 4, "txt_ids": 4}
    tokens["encoder_hidden_states_mask"] = 4
    found = dict(inputs)
    for name in tokens.keys() & inputs.keys():
        dim = 0 if inputs[name].ndim == 2 and name.endswith("ids") else 1
        found[name] = inputs[name].narrow(dim, 0, tokens[name])
    if "img_shapes" in found:
        found["img_shapes"] = [[(1, 6, 10)]] * len(found["img_shapes"])
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_uneven_heads_and_tokens_give_the_prediction_of_one_device(
    ranks: RankPool, name: str
) -> None:
    spec = small(name)
    inputs, work = inputs_for(spec), workload(passes=spec.defaults.passes)
    alone = step_alone(spec, inputs)
    assert alone.std() > 1e-3
    plans = [plan_for(spec, mesh, work) for mesh in (Mesh(), Mesh(ulysses=2), Mesh(ulysses=3))]
    # torch numbers the ranks of a group ascending, whatever their places in the mesh
    plans.append(plan_for(spec, Mesh(ulysses=3), work, (2, 0, 1)))
    results = ranks.run(outputs_by_diffusers, spec, plans, inputs, timeout_s=600)
    for number, plan in enumerate(plans):
        of_plan = [of_rank[number] for of_rank in results]
        assert sum(result is not None for result in of_plan) == plan.mesh.size
        assert furthest(alone, of_plan) <= EXACT, plan.mesh


@pytest.mark.parametrize("name", FAMILIES)
def test_heads_and_tokens_that_divide_give_the_prediction_of_one_device(
    ranks: RankPool, name: str
) -> None:
    spec = even(name)
    inputs = [cut_to_even(one) for one in inputs_for(spec, masked=2 if name == "qwen-image" else 0)]
    alone, work = step_alone(spec, inputs), workload(passes=spec.defaults.passes)
    degrees = (2,) if name == "wan" else (2, 4)
    plans = [plan_for(spec, Mesh(ulysses=degree), work) for degree in degrees]
    results = ranks.run(outputs_by_diffusers, spec, plans, inputs, timeout_s=600)
    for number, plan in enumerate(plans):
        assert furthest(alone, [of_rank[number] for of_rank in results]) <= EXACT, plan.mesh


def test_padded_text_is_masked_where_diffusers_masks_it_right(ranks: RankPool) -> None:
    spec = small("qwen-image")
    inputs, work = inputs_for(spec, masked=3), workload()
    alone, whole = step_alone(spec, inputs), step_alone(spec, inputs_for(spec))
    assert float((alone - whole).abs().max()) > 100 * EXACT
    plan = plan_for(spec, Mesh(ulysses=2), work)
    results = ranks.run(outputs_by_diffusers, spec, [plan], inputs, timeout_s=600)
    assert furthest(alone, [of_rank[0] for of_rank in results]) <= EXACT
    # of 7 and 63 tokens three ranks have 24, 23 and 23
    plan = plan_for(spec, Mesh(ulysses=3), work)
    said = ranks.run(refusal_by_diffusers, spec, plan, inputs, timeout_s=600)
    assert all("would mask other keys" in of_rank for of_rank in said[:3])


def test_what_diffusers_cannot_split_is_refused_on_all_ranks(ranks: RankPool) -> None:
    spec, work = small("flux"), workload(passes=1)
    asked = {
        Mesh(ulysses=4): "pads 5 heads by 3, which must be less than the 2 of a rank",
        Mesh(ring=2): "needs the log-sum-exp of GPU kernels",
    }
    for mesh, reason in asked.items():
        plan = plan_for(spec, mesh, work)
        said = ranks.run(refusal_by_diffusers, spec, plan, inputs_for(spec), timeout_s=600)
        assert all(reason in of_rank for of_rank in said[: mesh.size]), said
    with_residuals = inputs_for(spec)
    with_residuals[0]["controlnet_block_samples"] = [torch.zeros(2, 63, 80)]
    plan = plan_for(spec, Mesh(ulysses=2), work)
    said = ranks.run(refusal_by_diffusers, spec, plan, with_residuals, timeout_s=600)
    assert all("controlnet_block_samples" in of_rank for of_rank in said[:2]), said


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_is_left_of_a_plan_that_was_closed(ranks: RankPool, name: str) -> None:
    spec = small(name)
    work = workload(passes=spec.defaults.passes)
    for mesh, is_refused in ((Mesh(ulysses=2), False), (Mesh(ulysses=4), True)):
        plan = plan_for(spec, mesh, work)
        left = ranks.run(
            left_by_diffusers, spec, plan, inputs_for(spec), is_refused=is_refused, timeout_s=600
        )
        assert left == [[]] * 4, mesh
