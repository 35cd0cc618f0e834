"""What the tests of split VAEs ask of ranks, and small VAEs of each class."""

from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import diffusers
import torch
from diffusers.models.attention_processor import AttnProcessor

from ditplan.profiles.errors import InputError
from ditplan.profiles.family import pixels_per_latent
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import ExecutionPlan
from ditplan.runtime.groups import RankContext
from ditplan.runtime.models.loading import (
    call_arguments,
    load_pipeline,
    pictures_of,
    prompt_embeddings,
)
from ditplan.runtime.native import parallelize
from ditplan.runtime.vae.rows import Rows
from ditplan.runtime.vae.split_vae import VaeGroups, apply_vae

KL = {
    "block_out_channels": [8, 8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "layers_per_block": 1,
}
CAUSAL = {
    "base_dim": 8,
    "z_dim": 4,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "attn_scales": [],
    "temperal_downsample": [False, True],
    "latents_mean": [0.0] * 4,
    "latents_std": [1.0] * 4,
}
SMALL: dict[str, tuple[dict[str, Any], int | None]] = {
    "AutoencoderKL": (KL, None),
    "AutoencoderKLFlux2": (KL, None),
    "AutoencoderDC": (
        {
            "in_channels": 3,
            "latent_channels": 4,
            "attention_head_dim": 8,
            "encoder_block_types": ["ResBlock", "ResBlock", "EfficientViTBlock"],
            "decoder_block_types": ["ResBlock", "ResBlock", "EfficientViTBlock"],
            "encoder_block_out_channels": (8, 16, 32),
            "decoder_block_out_channels": (8, 16, 32),
            "encoder_layers_per_block": (1, 1, 1),
            "decoder_layers_per_block": (1, 1, 1),
            "encoder_qkv_multiscales": ((), (), (5,)),
            "decoder_qkv_multiscales": ((), (), (5,)),
        },
        None,
    ),
    "AutoencoderKLQwenImage": (CAUSAL, 1),
    "AutoencoderKLWan": (CAUSAL | {"scale_factor_spatial": 4, "scale_factor_temporal": 2}, 3),
    "AutoencoderKLCogVideoX": (
        {
            "down_block_types": ["CogVideoXDownBlock3D"] * 3,
            "up_block_types": ["CogVideoXUpBlock3D"] * 3,
            "block_out_channels": [8, 8, 16],
            "latent_channels": 4,
            "layers_per_block": 1,
            "norm_num_groups": 2,
        },
        5,
    ),
    "AutoencoderKLHunyuanVideo": (
        {
            "down_block_types": ["HunyuanVideoDownBlock3D"] * 4,
            "up_block_types": ["HunyuanVideoUpBlock3D"] * 4,
            "block_out_channels": [8, 8, 8, 8],
            "latent_channels": 4,
            "layers_per_block": 1,
            "norm_num_groups": 2,
        },
        6,
    ),
}
"""Class, config and how many latent frames are decoded, None for one of pictures."""


def small_vae(name: str) -> Any:
    """A VAE of a class, its weights the same on all ranks, some of them large enough that a fault
    shows in the picture.
    """
    torch.manual_seed(5)
    vae = getattr(diffusers, name).from_config(SMALL[name][0]).eval()
    with torch.no_grad():
        for weight in vae.parameters():
            if weight.ndim == 1 and weight.numel() > 1:
                weight.add_(0.3 * torch.randn_like(weight))
    return vae


def latent_of(name: str, height: int, width: int = 5, channels: int = 4) -> torch.Tensor:
    """A latent whose rows have unlike means, so that statistics of a few rows are others."""
    frames = SMALL[name][1]
    shape = (1, channels, *([frames] if frames else []), height, width)
    latent = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    return latent + torch.linspace(-1, 1, height)[:, None]


def decoded_both_ways(
    context: RankContext,
    name: str,
    heights: list[int],
    ranks: tuple[int, ...],
    degree: int,
    fault: str | None = None,
) -> list[float] | None:
    """How far pictures that ranks decode together are from those of one, for some latent heights;
    checks that the VAE is as before when that is over. None on ranks that aren't among those.
    """
    groups = VaeGroups.of(context, ranks, degree)
    if groups is None:
        return None
    vae = small_vae(name)
    before = state_of(vae)
    found = []
    with torch.no_grad():
        whole = [vae.decode(latent_of(name, height)).sample for height in heights]
        with ExitStack() as undo:
            if fault:
                undo.enter_context(planted(fault))
            apply_vae(vae, groups, undo)
            for height, expected in zip(heights, whole, strict=True):
                picture = vae.decode(latent_of(name, height)).sample
                assert picture.shape == expected.shape
                found.append(float((picture - expected).abs().max()))
        assert state_of(vae) == before
        again = vae.decode(latent_of(name, heights[0])).sample
        assert torch.equal(again, whole[0])
    return found


def state_of(vae: Any) -> list[Any]:
    """Classes and attributes of all modules, by what they are; not what a call keeps of frames."""
    of_calls = {"_feat_map", "_conv_idx", "_conv_num"}
    of_calls |= {f"_enc{name}" for name in of_calls}
    return [
        (
            name,
            type(module),
            {key: id(value) for key, value in vars(module).items() if key not in of_calls},
        )
        for name, module in vae.named_modules()
    ]


def planted(fault: str) -> Any:
    """A fault that the comparison must notice, while entered."""
    own_halo, own_gathered = Rows.with_halo, Rows.gathered

    def zeros_above(self: Rows, parts: Any, halo: Any, edge: Any) -> Any:
        found = own_halo(self, parts, halo, edge)
        for part in found:
            part[..., : halo.above, :] = 0
        return found

    def own_statistics(_self: Rows, part: torch.Tensor, groups: int) -> Any:
        by_group = part.unflatten(1, (groups, -1))
        variance, mean = torch.var_mean(by_group, tuple(range(2, by_group.ndim)), correction=0)
        return mean, variance

    def own_keys(self: Rows, part: torch.Tensor, dim: int = -2) -> torch.Tensor:
        return part if dim == 2 else own_gathered(self, part, dim)

    wrong = {
        "no halo": ("with_halo", zeros_above),
        "no sum": ("moments", own_statistics),
        "attention to own rows": ("gathered", own_keys),
        "state of own rows": ("summed", lambda _self, part: part),
    }
    name, method = wrong[fault]
    return patch.object(Rows, name, method)


def encoded_both_ways(
    context: RankContext, name: str, heights: list[int], ranks: tuple[int, ...], degree: int
) -> list[float] | None:
    """As `decoded_both_ways`, of latents of pictures that are so many latent rows high."""
    groups = VaeGroups.of(context, ranks, degree)
    if groups is None:
        return None
    vae, found = small_vae(name), []
    edge = pixels_per_latent(vae.config)
    frames = SMALL[name][1]
    with torch.no_grad():
        for height in heights:
            picture = latent_of(name, edge * height, 5 * edge, 3)
            if frames:
                picture = picture[:, :, :1].repeat(1, 1, 4 * frames - 3, 1, 1)
            whole = encoded(vae, picture)
            with ExitStack() as undo:
                apply_vae(vae, groups, undo)
                found.append(float((encoded(vae, picture) - whole).abs().max()))
    return found


def encoded(vae: Any, picture: torch.Tensor) -> torch.Tensor:
    """A picture's latent, without chance."""
    output = vae.encode(picture)
    latent = output.latent if hasattr(output, "latent") else output.latent_dist.parameters
    result: torch.Tensor = latent
    return result


def tiles_are_equal(
    context: RankContext, name: str, ranks: tuple[int, ...], degree: int
) -> tuple[int, bool] | None:
    """How many calls of the decoder for tiles this rank made, of all, and whether picture and
    latent are bit for bit those of one rank's tiles.
    """
    groups = VaeGroups.of(context, ranks, degree)
    if groups is None:
        return None
    vae = tiled_vae(name)
    edge, frames = pixels_per_latent(vae.config), SMALL[name][1]
    latent = latent_of(name, 9, 7)
    picture = latent_of(name, 9 * edge, 7 * edge, 3)
    if frames:
        picture = picture[:, :, :1].repeat(1, 1, 5, 1, 1)
    calls = [0]

    def count(*_: Any) -> None:
        calls[0] += 1

    with torch.no_grad():
        whole = vae.decode(latent).sample
        untiled = small_vae(name).decode(latent).sample
        assert not torch.equal(whole, untiled)
        coded = encoded(vae, picture) if name != "AutoencoderDC" else whole
        vae.decoder.conv_in.register_forward_pre_hook(count)
        with ExitStack() as undo:
            apply_vae(vae, groups, undo)
            equal = torch.equal(vae.decode(latent).sample, whole)
            if name != "AutoencoderDC":
                equal = equal and torch.equal(encoded(vae, picture), coded)
    return calls[0], equal


def tiled_vae(name: str) -> Any:
    """A small VAE that cuts pictures of more than 4 latent rows or columns."""
    vae = small_vae(name)
    if hasattr(vae, "tile_latent_min_size"):
        vae.enable_tiling()
        vae.tile_latent_min_size = 4
        vae.tile_sample_min_size = 4 * pixels_per_latent(vae.config)
        return vae
    edge = pixels_per_latent(vae.config)
    sizes = {"tile_sample_min_height": 4 * edge, "tile_sample_min_width": 4 * edge}
    if name != "AutoencoderKLCogVideoX":
        sizes |= {"tile_sample_stride_height": 3 * edge, "tile_sample_stride_width": 3 * edge}
    vae.enable_tiling(**sizes)
    return vae


def refusal_of(context: RankContext, change: str) -> str | None:
    """What is said of a VAE that can't be split; None on ranks beyond the first two."""
    groups = VaeGroups.of(context, (0, 1), 2)
    if groups is None:
        return None
    vae = small_vae("AutoencoderKL")
    if change == "class":
        vae = diffusers.AutoencoderTiny()
    elif change == "convolution":
        vae.decoder.conv_in.padding_mode = "circular"
    elif change == "processor":
        vae.decoder.mid_block.attentions[0].set_processor(AttnProcessor())
    try:
        with ExitStack() as undo, torch.no_grad():
            apply_vae(vae, groups, undo)
            vae.decode(latent_of("AutoencoderKL", 4))
    except InputError as error:
        return str(error)
    return "nothing"


def decoded_by_one_alone(
    context: RankContext, spec: ModelSpec, plan: ExecutionPlan, tiled: bool
) -> float | None:
    """How far off a picture is that the first rank decodes outside of the pipeline's calls."""
    pipeline = load_pipeline(spec, None, context.device, "float32")
    if tiled:
        pipeline.vae.enable_tiling()
        pipeline.vae.tile_latent_min_size, pipeline.vae.tile_sample_min_size = 4, 32
    latent = torch.randn(
        1, pipeline.vae.config.latent_channels, 12, 10, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        expected = pipeline.vae.decode(latent).sample
        with parallelize(pipeline, plan, context):
            if context.rank != 0:
                return None
            return float((pipeline.vae.decode(latent).sample - expected).abs().max())


def outputs_of_ranks(
    context: RankContext, spec: ModelSpec, plan: ExecutionPlan, outputs: list[str]
) -> torch.Tensor | str | None:
    """What a pipeline gives each rank of a plan, or says where ranks ask for these outputs."""
    pipeline = load_pipeline(spec, None, context.device, "float32")
    words = prompt_embeddings(spec, plan.workload, context.device, seed=1)
    with parallelize(pipeline, plan, context):
        if context.rank not in plan.configuration.placement:
            return None
        try:
            with torch.no_grad():
                result = pipeline(
                    **words,
                    **call_arguments(spec, plan.workload),
                    generator=torch.Generator().manual_seed(0),
                    output_type=outputs[context.rank],
                )
        except InputError as error:
            return str(error)
    picture: torch.Tensor = pictures_of(result)
    return picture
