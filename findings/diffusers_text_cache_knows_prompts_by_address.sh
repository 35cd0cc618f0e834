#!/usr/bin/env bash
# Expected: a cache of the prompt's keys and values notices that another prompt is given.
# Seen: TextKVCache knows a prompt by the memory address of its embeddings. New embeddings written into the
# same buffer (copy_) are taken for the old ones: the picture follows the old prompt, without a word.
# Version: diffusers 0.42.1. Source: hooks/text_kv_cache.py, TextKVCacheTransformerHook.new_forward keys by
# encoder_hidden_states.data_ptr().
# Matters: servers and CUDA graphs reuse input buffers, and the allocator gives a freed address to the next
# prompt; without _reset_stateful_cache() between pictures the wrong prompt is drawn.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 diffusers==0.42.1

cat > "$folder/show.py" <<'PYTHON'
"""Gives a Nucleus image transformer two prompts, in new tensors and in one reused buffer."""

import sys

import diffusers
import torch
from diffusers import NucleusMoEImageTransformer2DModel, TextKVCacheConfig

torch.manual_seed(0)
model = NucleusMoEImageTransformer2DModel(
    patch_size=1, in_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
    joint_attention_dim=8, axes_dims_rope=(4, 6, 6), moe_enabled=False,
).eval()
latents = torch.randn(1, 16, 4)
first, second = torch.randn(1, 5, 8), torch.randn(1, 5, 8)


def run(prompt):
    with torch.no_grad():
        return model(
            latents,
            [(1, 4, 4)],
            encoder_hidden_states=prompt,
            timestep=torch.tensor([0.5]),
            return_dict=False,
        )[0]


def distance(one, other):
    return (one - other).abs().max().item()


print("diffusers", diffusers.__version__)
plain_first, plain_second = run(first), run(second)
model.enable_cache(TextKVCacheConfig())
print(f"two prompts differ by {distance(plain_first, plain_second):.4f}")
own_tensors = distance(run(first), plain_first), distance(run(second), plain_second)
print(f"cached, each in its tensor: off by {own_tensors[0]:.6f} and {own_tensors[1]:.6f}")
buffer = torch.empty_like(first)
run(buffer.copy_(first))
reused = run(buffer.copy_(second))
to_second, to_first = distance(reused, plain_second), distance(reused, plain_first)
print(f"second prompt in the buffer of the first: off by {to_second:.4f}, from the first prompt {to_first:.6f}")
if max(own_tensors) > 1e-5 or to_second < 1e-4 or to_first > 1e-5:
    sys.exit("changed: the cache notices another prompt in the same buffer")
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
