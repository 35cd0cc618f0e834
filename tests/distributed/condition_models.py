"""Small transformers that are given more than a prompt: ControlNets, adapters, pictures."""

import inspect
from typing import Any

import diffusers
import torch
from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
from diffusers.models.embeddings import (
    ImageProjection,
    IPAdapterTimeImageProjection,
    MultiIPAdapterImageProjection,
)
from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor

from ditplan.profiles.family import family_of
from ditplan.profiles.model import ModelSpec
from ditplan.runtime.models.inspection import inspect_configs
from ditplan.runtime.models.loading import load_pipeline
from tests.distributed.family_models import (
    COGVIDEOX_VAE,
    DDIM,
    HUNYUAN_VIDEO_VAE,
    TRANSFORMERS,
    VIDEO_VAE,
    small,
)
from tests.distributed.family_tasks import inputs_of, small_model
from tests.distributed.small_models import SCHEDULER

CONTROL_NETS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "sd3": ("SD3ControlNetModel", {"num_layers": 2}, ("block_controlnet_hidden_states",)),
    "flux": (
        "FluxControlNetModel",
        {"num_layers": 1, "num_single_layers": 1},
        ("controlnet_block_samples", "controlnet_single_block_samples"),
    ),
    "qwen-image": ("QwenImageControlNetModel", {"num_layers": 2}, ("controlnet_block_samples",)),
    "hunyuan-dit": (
        "HunyuanDiT2DControlNetModel",
        {"transformer_num_layers": 6},
        ("controlnet_block_samples",),
    ),
    "sana": ("SanaControlNetModel", {"num_layers": 2}, ("controlnet_block_samples",)),
    "z-image": (
        "ZImageControlNetModel",
        {
            "control_layers_places": [0, 2],
            "control_refiner_layers_places": [0],
            "control_in_dim": 4,
        },
        ("controlnet_block_samples",),
    ),
}
"""By family: a ControlNet's class, its config's changes, and what it gives the transformer."""


def control_net(name: str, transformer: Any) -> Any:
    """A small ControlNet for a transformer, whose residuals matter."""
    class_name, changes, _ = CONTROL_NETS[name]
    model_class = getattr(diffusers, class_name)
    taken = inspect.signature(model_class.__init__).parameters
    config = {key: value for key, value in dict(transformer.config).items() if key in taken}
    torch.manual_seed(11)
    made = model_class.from_config(config | changes)
    for weight in made.parameters():
        if not weight.any():
            weight.data.normal_(std=0.1)
    if name == "z-image":
        made = model_class.from_transformer(made, transformer)
    return made.eval()


def residuals_of(name: str, spec: ModelSpec, inputs: dict[str, Any]) -> dict[str, Any]:
    """What a ControlNet gives a small transformer beside these inputs."""
    net = control_net(name, small_model(spec))
    taken = inspect.signature(type(net).forward).parameters
    given = {key: value for key, value in inputs.items() if key in taken}
    pictures = inputs[family_of(spec.transformer_class).batched_inputs[0]]
    if name == "z-image":
        given |= {"control_context": [picture.flip(-1) for picture in pictures]}
    else:
        given |= {"controlnet_cond": pictures.flip(-1), "conditioning_scale": 1.0}
        given |= {"return_dict": False}
    with torch.no_grad():
        made = net(**given)
    # these two return what they have made as it is, the others in a tuple
    bare = name in ("qwen-image", "z-image")
    return dict(zip(CONTROL_NETS[name][2], [made] if bare else made, strict=True))


def conditioned(name: str) -> tuple[ModelSpec, list[dict[str, Any]]]:
    """A small model that takes a picture, and the inputs of a step's calls."""
    if name == "token-replace":
        config = TRANSFORMERS["hunyuan-video"] | {"image_condition_type": "token_replace"}
        spec = inspect_configs("small-hunyuan-i2v", config, HUNYUAN_VIDEO_VAE, SCHEDULER, 0)
        return spec, [inputs_of(spec, frames=3, masked=3)]
    if name == "cogvideox-i2v":
        config = TRANSFORMERS["cogvideox"] | {"ofs_embed_dim": 16}
        spec = inspect_configs("small-cogvideox-i2v", config, COGVIDEOX_VAE, DDIM, 0)
        return spec, [inputs_of(spec, frames=3)]
    if name == "wan-i2v":
        config = TRANSFORMERS["wan"] | {"image_dim": 20, "added_kv_proj_dim": 80}
        spec = inspect_configs("small-wan-i2v", config, VIDEO_VAE, SCHEDULER, 0)
        calls = [inputs_of(spec, frames=3, seed=seed) for seed in range(2)]
        generator = torch.Generator().manual_seed(3)
        # behind the picture's tokens Wan looks for as many of text
        words = {"encoder_hidden_states": torch.randn(2, 512, 24, generator=generator)}
        picture = {"encoder_hidden_states_image": torch.randn(2, 5, 20, generator=generator)}
        return spec, [given | words | picture for given in calls]
    return _of_qwen(name)


def _of_qwen(name: str) -> tuple[ModelSpec, list[dict[str, Any]]]:
    """Qwen-Image with a second picture behind the first, by another time or as a layer."""
    layered = name == "qwen-layered"
    changes = (
        {"use_additional_t_cond": True, "use_layer3d_rope": True}
        if layered
        else {"zero_cond_t": True}
    )
    config = TRANSFORMERS["qwen-image"] | changes
    spec = inspect_configs(f"small-{name}", config, VIDEO_VAE, SCHEDULER, 0)
    calls = []
    for seed in range(2):
        inputs = inputs_of(spec, masked=3, seed=seed)
        pictures = inputs["hidden_states"]
        inputs["hidden_states"] = torch.cat([pictures, pictures[:, :12].flip(1)], 1)
        inputs["img_shapes"] = [[(1, 7, 9), (1, 3, 4)]] * 2
        if layered:
            inputs["additional_t_cond"] = torch.tensor([0, 1])
        calls.append(inputs)
    return spec, calls


CONDITIONED = ("token-replace", "cogvideox-i2v", "wan-i2v", "qwen-edit", "qwen-layered")


def adapted_pipeline(name: str) -> tuple[Any, dict[str, Any]]:
    """A small pipeline with an IP-Adapter, and what a call of it is given of a picture."""
    spec = small(name)
    pipeline = load_pipeline(spec, None, torch.device("cpu"), "float32")
    pipeline.transformer = model = small_model(spec)
    torch.manual_seed(7)
    if name == "flux":
        usual = model.attn_processors
        own = {
            path: FluxIPAdapterAttnProcessor(80, 24, num_tokens=(4,), scale=[2.0])
            if path.startswith("transformer_blocks")
            else processor
            for path, processor in usual.items()
        }
        model.set_attn_processor(own)
        projection = ImageProjection(20, cross_attention_dim=24, num_image_text_embeds=4)
        model.encoder_hid_proj = MultiIPAdapterImageProjection([projection])
        return pipeline, {
            "ip_adapter_image_embeds": [torch.randn(1, 1, 20)],
            "negative_ip_adapter_image_embeds": [torch.zeros(1, 1, 20)],
        }
    model.image_proj = IPAdapterTimeImageProjection(
        embed_dim=20,
        output_dim=32,
        hidden_dim=20,
        depth=1,
        dim_head=10,
        heads=2,
        num_queries=4,
        timestep_in_dim=320,
    )
    made = {
        path: SD3IPAdapterJointAttnProcessor2_0(80, 32, 16, timesteps_emb_dim=20, scale=0.8)
        for path in model.attn_processors
    }
    model.set_attn_processor(made)
    return pipeline, {"ip_adapter_image_embeds": torch.randn(2, 3, 20)}
