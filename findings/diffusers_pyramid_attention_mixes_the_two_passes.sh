#!/usr/bin/env bash
# Expected: a cache keeps the two passes of guidance apart, as cache_context("cond") and ("uncond") ask for.
# Seen: Pyramid Attention Broadcast counts both passes in one row and keeps one output: with a skip range of
# 2 every negative pass gets the self-attention that was computed for the positive prompt, in the same step.
# Version: diffusers 0.42.1. Source: hooks/pyramid_attention_broadcast.py: the hook holds one state itself
# instead of a StateManager, the only thing to which a context is told (hooks/hooks.py).
# Matters: for models whose pipeline calls the transformer once for each pass (Wan, Qwen-Image) the
# difference that guidance amplifies is wrong, and half of the saving comes from there.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 diffusers==0.42.1

cat > "$folder/show.py" <<'PYTHON'
"""Runs a positive and a negative pass of a Wan transformer with Pyramid Attention Broadcast."""

import sys

import diffusers
import torch
from diffusers import FirstBlockCacheConfig, PyramidAttentionBroadcastConfig, WanTransformer3DModel

torch.manual_seed(0)
model = WanTransformer3DModel(
    patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
    text_dim=8, freq_dim=16, ffn_dim=16, num_layers=3,
).eval()
latents = torch.randn(1, 4, 1, 8, 8)
prompts = {name: torch.randn(1, 5, 8) for name in ("cond", "uncond")}


def first_step():
    """The outputs of both passes of the first step: there is nothing yet to reuse."""
    with torch.no_grad():
        results = {}
        for name, prompt in prompts.items():
            with model.cache_context(name):
                results[name] = model(latents, torch.tensor([500]), prompt, return_dict=False)[0]
        return results


print("diffusers", diffusers.__version__)
plain = first_step()
caches = {
    "first block cache": FirstBlockCacheConfig(threshold=1e9),
    "pyramid attention broadcast": PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(100, 800),
        spatial_attention_block_identifiers=("blocks",),
        current_timestep_callback=lambda: 500,
    ),
}
differences = {}
for title, config in caches.items():
    model.enable_cache(config)
    cached = first_step()
    model.disable_cache()
    differences[title] = [(cached[name] - plain[name]).abs().max().item() for name in prompts]
    print(f"{title}: cond off by {differences[title][0]:.5f}, uncond off by {differences[title][1]:.5f}")
if differences["first block cache"] != [0, 0]:
    sys.exit("changed: the first block cache is inexact in the first step")
if differences["pyramid attention broadcast"][0] != 0 or differences["pyramid attention broadcast"][1] < 1e-4:
    sys.exit("changed: the passes are kept apart")
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
