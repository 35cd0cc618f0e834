"""Shipped model specs say what the diffusers classes say."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel
from torch.utils.flop_counter import FlopCounterMode

from ditplan.profiles.catalog import find_model, model_names
from ditplan.profiles.errors import InputError
from ditplan.profiles.family import family_of
from ditplan.profiles.model import ModelSpec
from ditplan.runtime.blocks import block_runs
from ditplan.runtime.models.inputs import InputShape, random_inputs
from ditplan.runtime.models.inspection import (
    config_digest,
    diffusers_class,
    inspect_configs,
    inspect_folder,
)
from tests.distributed.small_models import small_flux, small_sd3

PUBLISHED_PARAMETERS = {
    "sd3": 2.03e9,
    "sd3.5-large": 8.06e9,
    "flux-dev": 11.9e9,
    "flux-schnell": 11.9e9,
    "sd3.5-medium": 2.24e9,
    "pixart-alpha": 0.61e9,
    "pixart-sigma": 0.61e9,
    "hunyuandit": 1.5e9,
    "cogvideox-2b": 1.69e9,
    "cogvideox-5b": 5.57e9,
    "cogvideox1.5-5b": 5.57e9,
    "hunyuanvideo": 12.8e9,
    "wan2.1-1.3b": 1.42e9,
    "wan2.1-14b": 14.3e9,
    "qwen-image": 20.4e9,
    "flux2-dev": 32.2e9,
    "z-image": 6.15e9,
    "sana": 1.6e9,
    "auraflow": 6.83e9,
}


@pytest.mark.parametrize("name", model_names())
def test_shipped_spec_is_what_inspection_of_its_own_configs_gives(name: str) -> None:
    spec = find_model(name)
    again = inspect_configs(
        spec.name,
        transformer=spec.config | {"_class_name": spec.transformer_class},
        vae=spec.vae_config | {"_class_name": spec.vae_class},
        scheduler=spec.scheduler_config | {"_class_name": spec.scheduler_class},
        encoder_parameters=spec.encoder_parameters,
        defaults=spec.defaults,
        guidance_scale=spec.guidance_scale,
        pipeline_class=spec.pipeline_class,
    )
    assert again == spec


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_shipped_spec_has_the_published_number_of_parameters(name: str) -> None:
    assert find_model(name).transformer_parameters == pytest.approx(
        PUBLISHED_PARAMETERS[name], rel=0.01
    )


@pytest.mark.parametrize(
    "spec", [small_sd3(), small_flux(), small_flux(guidance_embeds=False)], ids=lambda s: s.name
)
def test_counted_flops_are_those_of_a_real_forward(spec: ModelSpec) -> None:
    family = family_of(spec.transformer_class)
    image, text, batch = 6 * 7, 11, 2
    with torch.device("meta"):
        model = diffusers_class(spec.transformer_class).from_config(spec.config)
        inputs = random_inputs(
            family.inputs_of(spec.config),
            InputShape.of_picture(spec, batch, text, 24, 28),
            spec.config,
            torch.device("meta"),
            torch.float32,
        )
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(**inputs)
    pairs = (image + text) ** 2
    per_sample = (
        spec.outside_image_flops * image
        + spec.outside_text_flops * text
        + sum(
            run.count
            * (
                run.image_flops * image
                + run.text_flops * text
                + run.fixed_flops
                + sum(4 * a.heads * a.head_dim * pairs for a in run.attentions)
            )
            for run in spec.blocks
        )
    )
    # the timestep's and the pooled prompt's embeddings are not worth a field
    embeddings = counter.get_total_flops() - batch * per_sample
    assert 0 <= embeddings <= 0.05 * counter.get_total_flops()


def test_sizes_of_a_picture_are_those_of_the_family_s_inputs() -> None:
    def shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
        sizes = InputShape.of_picture(spec, 2, 7, 28, 36)
        inputs = family_of(spec.transformer_class).inputs_of(spec.config)
        return {name: sizes.shape(dims, spec.config) for name, dims in inputs.items()}

    text = {"encoder_hidden_states": (2, 7, 24), "pooled_projections": (2, 12), "timestep": (2,)}
    ids = {"img_ids": (63, 3), "txt_ids": (7, 3)}
    assert shapes(small_sd3()) == text | {"hidden_states": (2, 4, 14, 18)}
    schnell = text | ids | {"hidden_states": (2, 63, 16)}
    assert shapes(small_flux(guidance_embeds=False)) == schnell
    assert shapes(small_flux()) == schnell | {"guidance": (2,)}


@pytest.mark.parametrize(
    ("spec", "usual"),
    [
        (small_sd3(), (64, 28, 2, 333, 7.0)),
        (small_flux(), (256, 28, 1, 512, 3.5)),
        (small_flux(guidance_embeds=False), (256, 4, 1, 256, 0.0)),
    ],
)
def test_what_is_usual_comes_from_the_family(spec: ModelSpec, usual: tuple[Any, ...]) -> None:
    asked = spec.defaults
    found = (asked.width, asked.steps, asked.passes, asked.text_tokens, spec.guidance_scale)
    assert (asked.height, *found) == (usual[0], *usual)


def test_a_config_that_no_usual_fits_is_an_error() -> None:
    family = family_of("FluxTransformer2DModel")
    only_dev = family.model_copy(update={"usual": family.usual[:1]})
    with pytest.raises(InputError, match=r"family flux doesn't say .* FluxTransformer2DModel"):
        only_dev.usual_of({"guidance_embeds": True})


def test_blocks_of_equal_structure_make_one_run() -> None:
    spec = small_sd3(num_layers=4, dual_attention_layers=[0, 1])
    assert [(run.kind, run.count) for run in spec.blocks] == [
        ("JointTransformerBlock", 2),
        ("JointTransformerBlock-2", 1),
        ("JointTransformerBlock-3", 1),
    ]
    assert [len(run.attentions) for run in spec.blocks] == [2, 1, 1]
    with torch.device("meta"):
        model = SD3Transformer2DModel.from_config(spec.config)
    runs = block_runs(model, family_of("SD3Transformer2DModel"))
    assert [path for _, paths in runs for path in paths] == [
        f"transformer_blocks.{i}" for i in range(4)
    ]


def test_the_digest_tells_architectures_apart_and_ignores_what_diffusers_adds() -> None:
    spec = small_sd3()
    assert config_digest(spec.config) == spec.config_hash
    assert config_digest(spec.config | {"_name_or_path": "/somewhere"}) == spec.config_hash
    assert config_digest(spec.config | {"num_layers": 4}) != spec.config_hash


def test_a_folder_that_is_no_pipeline_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model_index.json: no such file; expected"):
        inspect_folder(tmp_path, "x")


def test_a_transformer_without_family_is_an_error_that_lists_the_families() -> None:
    with pytest.raises(InputError, match=r"FooTransformer: no family .* sana, sd3, wan"):
        family_of("FooTransformer")
