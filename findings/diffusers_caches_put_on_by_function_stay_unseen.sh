#!/usr/bin/env bash
# Expected: a transformer with a step cache says so (is_cache_enabled), however the cache was put on.
# Seen: apply_first_block_cache(model, ...), which diffusers' own documentation uses, caches, but is_cache_enabled
# stays False, disable_cache only warns that nothing is enabled, and the cache works on. enable_cache with the
# same cache then raises because its hooks exist.
# Version: diffusers 0.42.1. Source: models/cache_utils.py keeps _cache_config, which only enable_cache sets;
# hooks/first_block_cache.py, apply_first_block_cache registers hooks alone.
# Matters: an engine that must refuse cached models (ranks that skip on their own wait for each other) or measure
# without caches can't rely on the flag; it has to look for hooks on the blocks.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 diffusers==0.42.1

cat > "$folder/show.py" <<'PYTHON'
"""Puts a cache on a Wan transformer by the function and asks the model about it."""

import sys

import diffusers
import torch
from diffusers import FirstBlockCacheConfig, WanTransformer3DModel
from diffusers.hooks import apply_first_block_cache

torch.manual_seed(0)
model = WanTransformer3DModel(
    patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
    text_dim=8, freq_dim=16, ffn_dim=16, num_layers=3,
).eval()
calls = []
model.blocks[1].ffn.register_forward_hook(lambda *_: calls.append(1))


def blocks_computed():
    """How often block 1 computes in two calls with the same input."""
    calls.clear()
    latents, prompt = torch.ones(1, 4, 1, 8, 8), torch.ones(1, 5, 8)
    with torch.no_grad(), model.cache_context("cond"):
        for _ in range(2):
            model(latents, torch.tensor([500]), prompt)
    model._reset_stateful_cache()
    return len(calls)


print("diffusers", diffusers.__version__)
before = blocks_computed()
apply_first_block_cache(model, FirstBlockCacheConfig(threshold=0.5))
model._diffusers_hook.invalidate_child_registries_cache()
after, enabled = blocks_computed(), model.is_cache_enabled
model.disable_cache()
disabled = blocks_computed()
try:
    model.enable_cache(FirstBlockCacheConfig(threshold=0.5))
    enabling = "accepted"
except ValueError as error:
    enabling = f"ValueError: {error}"
print("two calls, block 1 computes: plain", before, "- cache put on", after, "- after disable_cache", disabled)
print("is_cache_enabled:", enabled)
print("enable_cache:", enabling)
if (before, after, disabled) != (2, 1, 1) or enabled or "already exists" not in enabling:
    sys.exit("changed: the model knows of the cache")
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
