#!/usr/bin/env bash
# Expected: copy.deepcopy of a model has its own weights and computes with them.
# Seen: after enable_cache (or any other diffusers hook) the copy's hooked modules compute with the ORIGINAL's
# weights: changing all of the copy's weights doesn't change what its attentions return, and no error comes.
# Version: diffusers 0.42.1. Source: hooks/hooks.py, HookRegistry.register_hook: the new forward is a closure
# over the original module's bound forward, and deepcopy doesn't copy closures.
# Matters: EMA copies, one replica for each thread, "copy, merge a LoRA, compare": the copy silently draws
# the original's picture. Disable caches before copying.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 diffusers==0.42.1

cat > "$folder/show.py" <<'PYTHON'
"""Copies a Wan transformer with and without a cache, and zeroes the copy's attention weights."""

import copy
import sys

import diffusers
import torch
from diffusers import PyramidAttentionBroadcastConfig, WanTransformer3DModel

torch.manual_seed(0)
model = WanTransformer3DModel(
    patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
    text_dim=8, freq_dim=16, ffn_dim=16, num_layers=2,
).eval()
cache = PyramidAttentionBroadcastConfig(
    spatial_attention_block_skip_range=1, current_timestep_callback=lambda: 500
)
sequence = torch.randn(1, 16, 24)


def output_of_a_zeroed_copy():
    attention = copy.deepcopy(model).blocks[0].attn1
    with torch.no_grad():
        for weight in attention.parameters():
            weight.zero_()
        return attention(sequence).abs().max().item()


print("diffusers", diffusers.__version__)
plain = output_of_a_zeroed_copy()
print(f"zeroed copy of the plain model:  largest output {plain:.4f}")
model.enable_cache(cache)
cached = output_of_a_zeroed_copy()
print(f"zeroed copy of the cached model: largest output {cached:.4f}")
model.disable_cache()
disabled = output_of_a_zeroed_copy()
print(f"zeroed copy after disable_cache: largest output {disabled:.4f}")
if plain != 0 or cached == 0 or disabled != 0:
    sys.exit("changed: the copy computes with its own weights")
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
