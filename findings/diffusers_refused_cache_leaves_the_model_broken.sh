#!/usr/bin/env bash
# Expected: when enable_cache refuses a model with an error, the model is as it was before.
# Seen: Bria's transformer is refused ("not registered"), is_cache_enabled says False and disable_cache says
# that there is nothing to disable, but the blocks before the unknown class keep their hooks, and every later
# call of the model fails inside these hooks.
# Version: diffusers 0.42.1. Source: models/cache_utils.py (enable_cache sets _cache_config last) and
# hooks/first_block_cache.py (hooks go on block by block, nothing takes them off after an error).
# Matters: "try the cache, else go on without it" ends the run of a model that worked. The hooks must be taken
# off by hand (HookRegistry.remove_hook).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 diffusers==0.42.1

cat > "$folder/show.py" <<'PYTHON'
"""Lets enable_cache refuse a Bria transformer, then calls it without a cache."""

import sys

import diffusers
import torch
from diffusers import BriaTransformer2DModel, FirstBlockCacheConfig

torch.manual_seed(0)
model = BriaTransformer2DModel(
    patch_size=1, in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=16,
    num_attention_heads=2, joint_attention_dim=8, axes_dims_rope=[4, 4, 8],
).eval()


def outcome(action):
    try:
        action()
        return "runs"
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


def call():
    with torch.no_grad():
        model(
            hidden_states=torch.randn(1, 16, 4),
            encoder_hidden_states=torch.randn(1, 5, 8),
            timestep=torch.tensor([500.0]),
            img_ids=torch.zeros(16, 3),
            txt_ids=torch.zeros(5, 3),
        )


print("diffusers", diffusers.__version__)
before = outcome(call)
enabling = outcome(lambda: model.enable_cache(FirstBlockCacheConfig()))
enabled = model.is_cache_enabled
model.disable_cache()
after = outcome(call)
print("before:         ", before)
print("enable_cache:   ", enabling)
print("is_cache_enabled", enabled)
print("after:          ", after)
if before != "runs" or "not registered" not in enabling or enabled or after == "runs":
    sys.exit("changed: a refused cache leaves the model usable, or Bria isn't refused")
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
