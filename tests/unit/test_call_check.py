"""What a transformer is given and its family doesn't name: refused, by its name."""

from contextlib import ExitStack
from typing import Any

import diffusers
import pytest
import torch

from ditplan.profiles.errors import InputError
from ditplan.profiles.family import ModelFamily, family_of, load_families
from ditplan.runtime.batch.batch_split import BatchSplit
from ditplan.runtime.batch.call_check import CallCheck, require_samples
from ditplan.runtime.family_check import unnamed_inputs
from ditplan.runtime.groups import AxisGroup
from ditplan.runtime.models.inspection import inspect_configs
from tests.distributed.family_models import HUNYUAN_VIDEO_VAE, TRANSFORMERS, small
from tests.distributed.family_tasks import inputs_of, small_model
from tests.distributed.small_models import SCHEDULER

NOBODY: Any = None


def look(
    name: str,
    samples: int = 2,
    ranks: int = 2,
    in_patches: bool = False,
    family: ModelFamily | None = None,
    **more: Any,
) -> None:
    """A forward of a small model that is looked at, with `more` among its arguments."""
    spec = small(name)
    model = small_model(spec)
    family = family or family_of(spec.transformer_class)
    with ExitStack() as undo, torch.no_grad():
        CallCheck(model, family, ranks, in_patches).apply(undo)
        model(**inputs_of(spec, samples) | more)


@pytest.mark.parametrize("family", load_families().values(), ids=lambda family: family.name)
def test_a_shipped_family_names_all_that_its_transformer_takes(family: ModelFamily) -> None:
    model_class = getattr(diffusers, family.transformer_class)
    assert unnamed_inputs(model_class, family) == []
    assert not family.named_inputs & set(family.refused_inputs)
    assert not set(family.batched_inputs) & set(family.whole_inputs)


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        (
            "sd3",
            {"joint_attention_kwargs": {"regions": torch.zeros(2, 63)}},
            r"joint_attention_kwargs.regions \(a tensor of 2 x 63\).* sd3 does not say how",
        ),
        (
            "sd3",
            {"joint_attention_kwargs": {"of": {"tokens": 63}}},
            r"joint_attention_kwargs.of.tokens \(63\)",
        ),
        ("sana", {"attention_mask": torch.ones(2, 63)}, "reads no mask of image tokens"),
        ("flux2", {"num_ref_tokens": 4}, r"num_ref_tokens \(4\).* a cache of keys"),
        ("z-image", {"image_noise_mask": [[1], [1]]}, r"image_noise_mask \(a list of 2\)"),
        ("auraflow", {"unheard_of": [1, 2]}, "unheard_of"),
    ],
)
def test_what_is_not_named_is_refused_with_what_it_is(
    name: str, more: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        look(name, **more)


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        (
            "sd3",
            {"block_controlnet_hidden_states": [torch.zeros(4, 63, 80)]},
            "block_controlnet_hidden_states has 4 samples where the call has 2",
        ),
        (
            "flux",
            {"joint_attention_kwargs": {"ip_hidden_states": [torch.zeros(1, 4, 24)]}},
            "joint_attention_kwargs.ip_hidden_states has 1 samples where the call has 2",
        ),
        ("qwen-image", {"img_shapes": [[(1, 7, 9)]] * 3}, "img_shapes has 3 samples"),
    ],
)
def test_another_number_of_samples_is_refused(name: str, more: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        look(name, **more)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("sd3", {"joint_attention_kwargs": {"scale": 0.5}, "skip_layers": [0, 1]}),
        ("sd3", {"block_controlnet_hidden_states": [torch.zeros(1, 63, 80)]}),
        ("flux", {"controlnet_blocks_repeat": True}),
        ("flux2", {"num_ref_tokens": 0, "kv_cache": None, "ref_fixed_timestep": 0.0}),
        ("cogvideox", {"attention_kwargs": {}, "ofs": torch.full((1,), 2.0)}),
        ("z-image", {"patch_size": 2}),
    ],
)
def test_what_pipelines_usually_give_is_let_through(name: str, more: dict[str, Any]) -> None:
    look(name, **more)


def test_sizes_that_are_equal_by_chance_are_let_through() -> None:
    # two text tokens of two samples; as many text tokens as image tokens
    look("sd3", encoder_hidden_states=torch.zeros(2, 2, 24))
    look("wan", encoder_hidden_states=torch.zeros(2, 63, 24))


def test_fewer_samples_than_ranks_are_not_shared_out() -> None:
    family = family_of("SD3Transformer2DModel")
    residuals = {"block_controlnet_hidden_states": [torch.zeros(2, 63, 80)]}
    one = {"hidden_states": torch.zeros(1, 4, 14, 18)} | residuals
    require_samples(family, one, one, ranks=2)
    three = one | {"hidden_states": torch.zeros(3, 4, 14, 18)}
    with pytest.raises(InputError, match="2 samples where the call has 3"):
        require_samples(family, three, three, ranks=2)


def test_arguments_of_blocks_that_are_not_named_are_refused() -> None:
    config = TRANSFORMERS["hunyuan-video"] | {"image_condition_type": "token_replace"}
    spec = inspect_configs("small-hunyuan-i2v", config, HUNYUAN_VIDEO_VAE, SCHEDULER, 0)
    whole = family_of(spec.transformer_class)
    model = small_model(spec)
    inputs = inputs_of(spec, 1, frames=3)
    for family, is_named in ((whole, True), (whole.model_copy(update={"counts": ()}), False)):
        with ExitStack() as undo, torch.no_grad():
            CallCheck(model, family, 1, False).apply(undo)
            if is_named:
                model(**inputs)
                continue
            said = r"num_tokens of transformer_blocks.0 \(63\) may count .* hunyuan-video"
            for _ in range(2):
                with pytest.raises(InputError, match=said):
                    model(**inputs)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_what_goes_by_the_whole_picture_is_refused_in_patches() -> None:
    for name, more in (
        ("qwen-image", {"controlnet_block_samples": [torch.zeros(2, 63, 80)]}),
        ("sd3", {"joint_attention_kwargs": {"ip_adapter_image_embeds": torch.zeros(2, 3, 20)}}),
    ):
        with pytest.raises(InputError, match=r"can't be given with pipefusion: .* pipefusion 1"):
            look(name, in_patches=True, **more)


def test_each_rank_gets_its_samples_of_lists_dicts_and_items() -> None:
    split = BatchSplit(
        family_of("QwenImageTransformer2DModel"), AxisGroup(ranks=(0, 1), index=1, handle=NOBODY)
    )
    given = {
        "hidden_states": torch.arange(3)[:, None],
        "img_shapes": [[(1, 1, 1)], [(1, 2, 2)], [(1, 3, 3)]],
        "controlnet_block_samples": [torch.arange(3)] * 3,
    }
    shared, samples = split.share(given)
    assert samples == 3
    assert shared["img_shapes"] == [[(1, 3, 3)]]
    assert [one.tolist() for one in shared["controlnet_block_samples"]] == [[2]] * 3
    of_flux = BatchSplit(
        family_of("FluxTransformer2DModel"), AxisGroup(ranks=(0, 1), index=1, handle=NOBODY)
    )
    kwargs: dict[str, Any] = {"ip_hidden_states": [torch.arange(3)], "scale": 0.5}
    shared, _ = of_flux.share(
        {"hidden_states": torch.zeros(3, 1), "joint_attention_kwargs": kwargs}
    )
    assert shared["joint_attention_kwargs"]["ip_hidden_states"][0].tolist() == [2]
    assert kwargs["ip_hidden_states"][0].tolist() == [0, 1, 2]
