"""A small transformer of each family: five heads, so that nothing divides by 2, 3 or 4."""

from typing import Any

from ditplan.profiles.model import ModelSpec
from ditplan.runtime.models.inspection import inspect_configs
from tests.distributed.small_models import SCHEDULER, VAE, small_flux, small_sd3

HEADS = {"num_attention_heads": 5, "attention_head_dim": 16}
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
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "pixart": {
        "_class_name": "PixArtTransformer2DModel",
        **HEADS,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 3,
        "cross_attention_dim": 80,
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
        **HEADS,
        "in_channels": 4,
        "patch_size": 2,
        "sample_size": 32,
        "hidden_size": 80,
        "num_layers": 6,
        "cross_attention_dim": 24,
        "cross_attention_dim_t5": 24,
        "pooled_projection_dim": 12,
        "text_len": 7,
        "text_len_t5": 6,
    },
    "cogvideox": {
        "_class_name": "CogVideoXTransformer3DModel",
        **HEADS,
        "in_channels": 4,
        "out_channels": 4,
        "time_embed_dim": 16,
        "text_embed_dim": 24,
        "num_layers": 3,
        "max_text_seq_length": 7,
        "use_rotary_positional_embeddings": True,
    },
    "cogvideox-2b": {
        "_class_name": "CogVideoXTransformer3DModel",
        **HEADS,
        "in_channels": 4,
        "out_channels": 4,
        "time_embed_dim": 16,
        "text_embed_dim": 24,
        "num_layers": 2,
        "max_text_seq_length": 7,
    },
    "cogvideox-1.5": {
        "_class_name": "CogVideoXTransformer3DModel",
        **HEADS,
        "in_channels": 4,
        "out_channels": 4,
        "time_embed_dim": 16,
        "text_embed_dim": 24,
        "num_layers": 2,
        "max_text_seq_length": 7,
        "patch_size_t": 2,
        "use_rotary_positional_embeddings": True,
    },
    "hunyuan-video": {
        "_class_name": "HunyuanVideoTransformer3DModel",
        **HEADS,
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
        **HEADS,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 24,
        "freq_dim": 16,
        "ffn_dim": 96,
        "num_layers": 3,
    },
    "qwen-image": {
        "_class_name": "QwenImageTransformer2DModel",
        **HEADS,
        "in_channels": 16,
        "out_channels": 4,
        "num_layers": 3,
        "joint_attention_dim": 24,
        "axes_dims_rope": [4, 6, 6],
    },
    "flux2": {
        "_class_name": "Flux2Transformer2DModel",
        **HEADS,
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
        "dim": 80,
        "n_layers": 3,
        "n_refiner_layers": 1,
        "n_heads": 5,
        "n_kv_heads": 5,
        "cap_feat_dim": 24,
        "axes_dims": [4, 6, 6],
        "axes_lens": [128, 32, 32],
    },
    "sana": {
        "_class_name": "SanaTransformer2DModel",
        **HEADS,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 3,
        "num_cross_attention_heads": 5,
        "cross_attention_head_dim": 16,
        "cross_attention_dim": 80,
        "caption_channels": 24,
        "patch_size": 2,
        "sample_size": 32,
    },
    "auraflow": {
        "_class_name": "AuraFlowTransformer2DModel",
        **HEADS,
        "sample_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "num_mmdit_layers": 2,
        "num_single_dit_layers": 2,
        "joint_attention_dim": 24,
        "caption_projection_dim": 80,
        "pos_embed_max_size": 1024,
    },
}
DPM = {
    "_class_name": "DPMSolverMultistepScheduler",
    "use_flow_sigmas": True,
    "prediction_type": "flow_prediction",
}
DDIM = {
    "_class_name": "CogVideoXDDIMScheduler",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
}
EIGHTH_VAE: dict[str, Any] = VAE | {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [8, 8, 8, 8],
}
NOISE: dict[str, object] = {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}
VIDEOS = ("wan", "qwen-image")


def small(name: str) -> ModelSpec:
    """The spec of a small model; the VAE is one of the right kind, not always the right class."""
    if name in ("sd3", "sd3.5"):
        return small_sd3() if name == "sd3" else small_sd3(dual_attention_layers=[0, 2])
    if name == "flux":
        return small_flux()
    vae: dict[str, Any] = VIDEO_VAE if name in VIDEOS else VAE
    scheduler = DPM if name.startswith("pixart") else SCHEDULER
    if name == "hunyuan-dit":
        vae, scheduler = EIGHTH_VAE, NOISE
    if name == "hunyuan-video":
        vae = HUNYUAN_VIDEO_VAE
    if name.startswith("cogvideox"):
        vae, scheduler = COGVIDEOX_VAE, DDIM
    return inspect_configs(f"small-{name}", TRANSFORMERS[name], vae, scheduler, 0)


NAMES = ("sd3", "sd3.5", "flux", *TRANSFORMERS)
