"""Small random models of the families: real diffusers classes with a few blocks and few heads."""

from typing import Any

from ditplan.profiles.model import ModelSpec
from ditplan.profiles.workload import Workload
from ditplan.runtime.models.inspection import inspect_configs

HEAD_DIM = 16
STEPS = 2
UNEVEN, EVEN = (5, 7), (6, 12)
"""Heads and text tokens: such that nothing divides by 2, 3 or 4, and such that all does by 2 and 3.
"""

VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [8, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "shift_factor": 0.0,
}
EIGHTH_VAE: dict[str, Any] = VAE | {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [8, 8, 8, 8],
}
VIDEO_VAE = {
    "_class_name": "AutoencoderKLWan",
    "base_dim": 8,
    "z_dim": 4,
    "dim_mult": [1, 1],
    "num_res_blocks": 1,
    "attn_scales": [],
    "temperal_downsample": [True],
    "latents_mean": [0.0] * 4,
    "latents_std": [1.0] * 4,
    "scale_factor_spatial": 2,
    "scale_factor_temporal": 2,
}
COGVIDEOX_VAE = {
    "_class_name": "AutoencoderKLCogVideoX",
    "down_block_types": ["CogVideoXDownBlock3D"] * 2,
    "up_block_types": ["CogVideoXUpBlock3D"] * 2,
    "block_out_channels": [8, 8],
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 2,
}
HUNYUAN_VIDEO_VAE = {
    "_class_name": "AutoencoderKLHunyuanVideo",
    "down_block_types": ["HunyuanVideoDownBlock3D"] * 4,
    "up_block_types": ["HunyuanVideoUpBlock3D"] * 4,
    "block_out_channels": [8, 8, 8, 8],
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "mid_block_add_attention": False,
}
SANA_VAE = {
    "_class_name": "AutoencoderDC",
    "latent_channels": 4,
    "attention_head_dim": 8,
    "encoder_block_types": ["ResBlock"] * 4,
    "decoder_block_types": ["ResBlock"] * 4,
    "encoder_block_out_channels": [8] * 4,
    "decoder_block_out_channels": [8] * 4,
    "encoder_layers_per_block": [1] * 4,
    "decoder_layers_per_block": [1] * 4,
    "encoder_qkv_multiscales": [[]] * 4,
    "decoder_qkv_multiscales": [[]] * 4,
}
SCHEDULER: dict[str, Any] = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
DPM: dict[str, Any] = {
    "_class_name": "DPMSolverMultistepScheduler",
    "use_flow_sigmas": True,
    "prediction_type": "flow_prediction",
}
DDIM: dict[str, Any] = {
    "_class_name": "CogVideoXDDIMScheduler",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
}
NOISE: dict[str, Any] = {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}
FAMILIES = (
    "auraflow",
    "cogvideox",
    "flux",
    "flux2",
    "hunyuan-dit",
    "hunyuan-video",
    "pixart",
    "qwen-image",
    "sana",
    "sd3",
    "wan",
    "z-image",
)
PARTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "flux": (VAE, SCHEDULER | {"use_dynamic_shifting": True}),
    "pixart": (VAE, DPM),
    "pixart-alpha": (VAE, DPM),
    "hunyuan-dit": (EIGHTH_VAE, NOISE),
    "hunyuan-video": (HUNYUAN_VIDEO_VAE, SCHEDULER),
    "cogvideox": (COGVIDEOX_VAE, DDIM),
    "cogvideox-2b": (COGVIDEOX_VAE, DDIM),
    "cogvideox-1.5": (COGVIDEOX_VAE, DDIM),
    "wan": (VIDEO_VAE, SCHEDULER),
    "qwen-image": (VIDEO_VAE, SCHEDULER),
    "sana": (SANA_VAE, DPM),
}
"""VAE and scheduler of those that don't have the usual ones; the VAE is one of the right kind, not
always the right class."""


def transformers(heads: int, text_tokens: int) -> dict[str, dict[str, Any]]:
    """Configs of transformers with so many heads, by family; those with more after their family's
    name are of other shapes of the same one.
    """
    attention = {"num_attention_heads": heads, "attention_head_dim": HEAD_DIM}
    width = heads * HEAD_DIM
    return {
        "sd3": {
            "_class_name": "SD3Transformer2DModel",
            "sample_size": 32,
            "patch_size": 2,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 3,
            "joint_attention_dim": 24,
            "caption_projection_dim": width,
            "pooled_projection_dim": 12,
            "pos_embed_max_size": 32,
            **attention,
        },
        "flux": {
            "_class_name": "FluxTransformer2DModel",
            "in_channels": 16,
            "num_layers": 2,
            "num_single_layers": 2,
            "joint_attention_dim": 24,
            "pooled_projection_dim": 12,
            "guidance_embeds": True,
            "axes_dims_rope": [4, 6, 6],
            **attention,
        },
        "pixart": {
            "_class_name": "PixArtTransformer2DModel",
            **attention,
            "in_channels": 4,
            "out_channels": 8,
            "num_layers": 3,
            "cross_attention_dim": width,
            "sample_size": 32,
            "caption_channels": 24,
        },
        "pixart-alpha": {
            "_class_name": "PixArtTransformer2DModel",
            # sizes are embedded in thirds
            "num_attention_heads": 3,
            "attention_head_dim": 16,
            "in_channels": 4,
            "out_channels": 8,
            "num_layers": 2,
            "cross_attention_dim": 48,
            "sample_size": 128,
            "use_additional_conditions": True,
            "caption_channels": 24,
        },
        "hunyuan-dit": {
            "_class_name": "HunyuanDiT2DModel",
            **attention,
            "in_channels": 4,
            "patch_size": 2,
            "sample_size": 32,
            "hidden_size": width,
            "num_layers": 6,
            "cross_attention_dim": 24,
            "cross_attention_dim_t5": 24,
            "pooled_projection_dim": 12,
            "text_len": text_tokens,
            "text_len_t5": 6,
        },
        "cogvideox": {
            "_class_name": "CogVideoXTransformer3DModel",
            **attention,
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 16,
            "text_embed_dim": 24,
            "num_layers": 3,
            "max_text_seq_length": text_tokens,
            "use_rotary_positional_embeddings": True,
        },
        "cogvideox-2b": {
            "_class_name": "CogVideoXTransformer3DModel",
            **attention,
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 16,
            "text_embed_dim": 24,
            "num_layers": 2,
            "max_text_seq_length": text_tokens,
        },
        "cogvideox-1.5": {
            "_class_name": "CogVideoXTransformer3DModel",
            **attention,
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 16,
            "text_embed_dim": 24,
            "num_layers": 2,
            "max_text_seq_length": text_tokens,
            "patch_size_t": 2,
            "use_rotary_positional_embeddings": True,
        },
        "hunyuan-video": {
            "_class_name": "HunyuanVideoTransformer3DModel",
            **attention,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "num_single_layers": 2,
            "num_refiner_layers": 1,
            "text_embed_dim": 24,
            "pooled_projection_dim": 12,
            "rope_axes_dim": [4, 6, 6],
        },
        "wan": {
            "_class_name": "WanTransformer3DModel",
            **attention,
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 24,
            "freq_dim": 16,
            "ffn_dim": 96,
            "num_layers": 3,
        },
        "qwen-image": {
            "_class_name": "QwenImageTransformer2DModel",
            **attention,
            "in_channels": 16,
            "out_channels": 4,
            "num_layers": 3,
            "joint_attention_dim": 24,
            "axes_dims_rope": [4, 6, 6],
        },
        "flux2": {
            "_class_name": "Flux2Transformer2DModel",
            **attention,
            "in_channels": 16,
            "num_layers": 2,
            "num_single_layers": 2,
            "joint_attention_dim": 24,
            "timestep_guidance_channels": 16,
            "axes_dims_rope": [4, 4, 4, 4],
        },
        "z-image": {
            "_class_name": "ZImageTransformer2DModel",
            "in_channels": 4,
            "dim": width,
            "n_layers": 3,
            "n_refiner_layers": 1,
            "n_heads": heads,
            "n_kv_heads": heads,
            "cap_feat_dim": 24,
            "axes_dims": [4, 6, 6],
            "axes_lens": [128, 32, 32],
        },
        "sana": {
            "_class_name": "SanaTransformer2DModel",
            **attention,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 3,
            "num_cross_attention_heads": heads,
            "cross_attention_head_dim": 16,
            "cross_attention_dim": width,
            "caption_channels": 24,
            "patch_size": 2,
            "sample_size": 32,
        },
        "auraflow": {
            "_class_name": "AuraFlowTransformer2DModel",
            **attention,
            "sample_size": 32,
            "in_channels": 4,
            "out_channels": 4,
            "num_mmdit_layers": 2,
            "num_single_dit_layers": 2,
            "joint_attention_dim": 24,
            "caption_projection_dim": width,
            "pos_embed_max_size": 1024,
        },
    }


def small_model(name: str, *, heads: int = 5, text_tokens: int = 7) -> ModelSpec:
    """The spec of the small model of a family."""
    vae, scheduler = PARTS.get(name, (VAE, SCHEDULER))
    return inspect_configs(
        f"small-{name}", transformers(heads, text_tokens)[name], vae, scheduler, 0
    )


def small_workload(
    spec: ModelSpec, text_tokens: int, *, batch: int = 1, steps: int = 2
) -> Workload:
    """What a small model is asked for: few tokens, in float32, with guidance where it makes passes.

    With an odd number of text tokens image tokens don't divide by 3 either.
    """
    unit = 32 if spec.vae_class == "AutoencoderDC" else max(16, spec.pixels_per_token)
    rows, columns = (4, 5) if text_tokens % 2 else (3, 6)
    return Workload(
        height=rows * unit,
        width=columns * unit,
        frames=5 if spec.frames_per_token > 1 else 1,
        steps=STEPS,
        passes=spec.defaults.passes,
        text_tokens=text_tokens,
        batch=batch,
        dtype="float32",
    )
