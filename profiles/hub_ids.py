"""The shipped models by the names that they have on the Hugging Face Hub."""

HUB_IDS = {
    "fal/AuraFlow": "auraflow",
    "fal/AuraFlow-v0.2": "auraflow",
    "fal/AuraFlow-v0.3": "auraflow",
    "zai-org/CogVideoX-2b": "cogvideox-2b",
    "THUDM/CogVideoX-2b": "cogvideox-2b",
    "zai-org/CogVideoX-5b": "cogvideox-5b",
    "THUDM/CogVideoX-5b": "cogvideox-5b",
    "zai-org/CogVideoX1.5-5B": "cogvideox1.5-5b",
    "THUDM/CogVideoX1.5-5B": "cogvideox1.5-5b",
    "black-forest-labs/FLUX.1-dev": "flux-dev",
    "black-forest-labs/FLUX.1-schnell": "flux-schnell",
    "black-forest-labs/FLUX.2-dev": "flux2-dev",
    "Tencent-Hunyuan/HunyuanDiT-v1.2-Diffusers": "hunyuandit",
    "hunyuanvideo-community/HunyuanVideo": "hunyuanvideo",
    "PixArt-alpha/PixArt-XL-2-1024-MS": "pixart-alpha",
    "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS": "pixart-sigma",
    "Qwen/Qwen-Image": "qwen-image",
    "Efficient-Large-Model/Sana_1600M_1024px_diffusers": "sana",
    "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers": "sana",
    "stabilityai/stable-diffusion-3-medium-diffusers": "sd3",
    "stabilityai/stable-diffusion-3.5-medium": "sd3.5-medium",
    "stabilityai/stable-diffusion-3.5-large": "sd3.5-large",
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": "wan2.1-1.3b",
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": "wan2.1-14b",
    "Tongyi-MAI/Z-Image-Turbo": "z-image",
}
"""Hub ids of pipelines whose transformers have a shipped model's config; names there count in any
case, and the Hub redirects old owners."""


def shipped_as(name: str) -> str | None:
    """The shipped model that a hub id names, or a folder called as the hub id's last part; None if
    there is none.

    >>> shipped_as("/models/FLUX.1-dev/")
    'flux-dev'
    """
    last = name.rstrip("/").rpartition("/")[2].lower()
    for hub_id, model in HUB_IDS.items():
        if name.lower() == hub_id.lower() or last == hub_id.rpartition("/")[2].lower():
            return model
    return None
