#!/usr/bin/env bash
# Expected: taking one hook off a module leaves the other hooks on it as they are.
# Seen: taking off skip-layer hooks that were put on before the cache also ends the cache of that block: all
# of its steps are computed in full again, while is_cache_enabled stays True and the hook is still listed.
# Version: diffusers 0.42.1. Source: hooks/hooks.py, HookRegistry.remove_hook: the next hook's fn_ref.forward
# is overwritten with the forward below, but there stood its own new_forward.
# Matters: guidance that puts its hooks on and off at each step (skip-layer, perturbed attention), caches
# and offloading share this registry, and the loss of a cache or a skip says nothing.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 diffusers==0.42.1

cat > "$folder/show.py" <<'PYTHON'
"""Puts two hooks on the blocks of a Wan transformer and takes the first one off again."""

import sys

import diffusers
import torch
from diffusers import FirstBlockCacheConfig, LayerSkipConfig, WanTransformer3DModel
from diffusers.hooks import HookRegistry, apply_layer_skip

torch.manual_seed(0)
model = WanTransformer3DModel(
    patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
    text_dim=8, freq_dim=16, ffn_dim=16, num_layers=4,
).eval()
calls = [0, 0, 0, 0]
for index, block in enumerate(model.blocks):

    def count(_module, _inputs, _output, index=index):
        calls[index] += 1

    block.ffn.register_forward_hook(count)
inputs = {
    "hidden_states": torch.randn(1, 4, 1, 8, 8),
    "timestep": torch.tensor([500]),
    "encoder_hidden_states": torch.randn(1, 5, 8),
}


def second_call():
    """Which blocks compute in the second of two calls with equal inputs."""
    with torch.no_grad(), model.cache_context("cond"):
        model(**inputs)
        before = list(calls)
        model(**inputs)
    return [index for index in range(4) if calls[index] > before[index]]


print("diffusers", diffusers.__version__)
skip = LayerSkipConfig(indices=[2], fqn="blocks")
apply_layer_skip(model, skip)
model.enable_cache(FirstBlockCacheConfig(threshold=1e9))
print("skip, then cache: second call computes blocks", second_call())
HookRegistry.check_if_exists_or_initialize(model).remove_hook("layer_skip_hook", recurse=True)
after = second_call()
print("skip taken off:   second call computes blocks", after)
print("is_cache_enabled:", model.is_cache_enabled, "- block 2:", list(model.blocks[2]._diffusers_hook.hooks))
if after != [0, 2] or not model.is_cache_enabled:
    sys.exit("changed: the cache of block 2 outlives the hook that was taken off")
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
