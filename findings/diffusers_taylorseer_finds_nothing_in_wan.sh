#!/usr/bin/env bash
# Expected: enable_cache(TaylorSeerCacheConfig()) caches the attentions of a transformer, or says that it found none.
# Seen: for Wan and LTX-Video it hooks no module at all, without a word: is_cache_enabled is True, and each block
# computes at each step. FLUX is cached as described.
# Version: diffusers 0.42.1. Source: hooks/taylorseer_cache.py: patterns such as "^blocks.*attn" are matched by
# re.fullmatch, and the attentions of these models are called attn1 and attn2.
# Matters: a planner that expects 4 of 5 steps to be cheap, or a benchmark of "TaylorSeer on Wan", measures the
# plain model. cache_identifiers=["blocks.*attn1"] works.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 diffusers==0.42.1

cat > "$folder/show.py" <<'PYTHON'
"""Enables TaylorSeer on three transformers and counts what computes."""

import sys

import diffusers
import torch
from diffusers import (
    FluxTransformer2DModel,
    LTXVideoTransformer3DModel,
    TaylorSeerCacheConfig,
    WanTransformer3DModel,
)

torch.manual_seed(0)
wan = WanTransformer3DModel(
    patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
    text_dim=8, freq_dim=16, ffn_dim=16, num_layers=2,
).eval()
flux = FluxTransformer2DModel(
    patch_size=1, in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=16,
    num_attention_heads=2, joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(4, 4, 8),
)
ltx = LTXVideoTransformer3DModel(
    in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, cross_attention_dim=32,
    num_layers=2, caption_channels=8,
)


def hooked(model, **settings):
    """How many modules are hooked, and whether the model says that it is cached."""
    model.enable_cache(TaylorSeerCacheConfig(**settings))
    hooks = [part._diffusers_hook.hooks for part in model.modules() if hasattr(part, "_diffusers_hook")]
    found = sum(map(bool, hooks)), model.is_cache_enabled
    model.disable_cache()
    return found


def steps_computed(**settings):
    """At which of 12 steps the first attention of Wan computes."""
    computed = []
    counter = wan.blocks[0].attn1.to_q.register_forward_hook(lambda *_: computed.append(step))
    wan.enable_cache(TaylorSeerCacheConfig(**settings))
    latents, prompt = torch.randn(1, 4, 1, 8, 8), torch.randn(1, 5, 8)
    for step in range(12):
        with torch.no_grad(), wan.cache_context("cond"):
            wan(latents, torch.tensor([500]), prompt)
    wan.disable_cache()
    counter.remove()
    return computed


print("diffusers", diffusers.__version__)
found = {type(model).__name__: hooked(model) for model in (flux, wan, ltx)}
for name, (modules, enabled) in found.items():
    print(f"{name}: {modules} modules hooked, is_cache_enabled {enabled}")
plain = steps_computed()
named = steps_computed(cache_identifiers=["blocks.*attn1"])
print("Wan, attention computed at steps", plain)
print("Wan with cache_identifiers:     ", named)
if list(found.values()) != [(4, True), (0, True), (0, True)] or plain != list(range(12)) or len(named) > 8:
    sys.exit("changed: TaylorSeer finds the attentions, or says that it doesn't")
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
