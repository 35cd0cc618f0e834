#!/usr/bin/env bash
# Expected: what enable_cache accepts runs; both block classes of FLUX.2 are listed as known to the caches.
# Seen: enable_cache(FirstBlockCacheConfig()) is accepted, and the first call of the transformer raises
# TypeError: Tensor - list. MagCache, given the same model, runs.
# Version: diffusers 0.42.1. Source: hooks/first_block_cache.py: the head hook keeps a list because FLUX.2's
# first block returns two tensors, and the tail hook takes it for a tensor because the last block (single
# stream) returns one.
# Matters: a tuner that tries caches finds out only in the run, after the weights were loaded.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 diffusers==0.42.1

cat > "$folder/show.py" <<'PYTHON'
"""Enables two caches on a FLUX.2 transformer and calls it."""

import sys

import diffusers
import torch
from diffusers import FirstBlockCacheConfig, Flux2Transformer2DModel, MagCacheConfig

torch.manual_seed(0)
model = Flux2Transformer2DModel(
    patch_size=1, in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=16,
    num_attention_heads=2, joint_attention_dim=8, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4),
).eval()
inputs = {
    "hidden_states": torch.randn(1, 16, 4),
    "encoder_hidden_states": torch.randn(1, 5, 8),
    "timestep": torch.tensor([0.5]),
    "img_ids": torch.zeros(1, 16, 4),
    "txt_ids": torch.zeros(1, 5, 4),
    "guidance": torch.tensor([1.0]),
}


def outcome(config):
    model.enable_cache(config)
    try:
        with torch.no_grad(), model.cache_context("cond"):
            model(**inputs)
        return "runs"
    except TypeError as error:
        return f"TypeError: {error}"
    finally:
        model.disable_cache()


print("diffusers", diffusers.__version__)
mag = outcome(MagCacheConfig(mag_ratios=[1.0] * 4, num_inference_steps=4))
first_block = outcome(FirstBlockCacheConfig(threshold=0.1))
print("MagCache:       ", mag)
print("FirstBlockCache:", first_block)
if mag != "runs" or "'Tensor' and 'list'" not in first_block:
    sys.exit("changed: the first block cache treats FLUX.2 in another way")
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
