#!/usr/bin/env bash
# Expected: a skipped block is as if it weren't there: text and image go through it unchanged.
# Seen: the skipped block hands them on in swapped places where blocks return the text first: FLUX here; SD3 and
# Qwen-Image are registered alike. With 5 text and 16 image tokens FLUX returns 5 tokens for the picture's 16;
# with as many text tokens as image tokens nothing shows but another picture.
# Version: diffusers 0.42.1. Source: hooks/layer_skip.py, TransformerBlockSkipHook.new_forward returns
# (hidden, encoder) without asking the metadata's return_hidden_states_index, which is 1 for these.
# Matters: whoever skips whole blocks (skip-layer guidance, pruning, early exits) gets text in place of the
# picture; an even number of skipped blocks in a row hides it.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 diffusers==0.42.1

cat > "$folder/show.py" <<'PYTHON'
"""Skips a block of FLUX by diffusers' hook, and by hand, and compares."""

import sys

import diffusers
import torch
from diffusers import FluxTransformer2DModel, LayerSkipConfig
from diffusers.hooks import HookRegistry, apply_layer_skip

torch.manual_seed(0)
model = FluxTransformer2DModel(
    patch_size=1, in_channels=4, num_layers=3, num_single_layers=2, attention_head_dim=16,
    num_attention_heads=2, joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(4, 4, 8),
).eval()


def run(text_tokens):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        return model(
            hidden_states=torch.randn(1, 16, 4, generator=generator),
            encoder_hidden_states=torch.randn(1, text_tokens, 8, generator=generator),
            pooled_projections=torch.randn(1, 8, generator=generator),
            timestep=torch.tensor([0.5]),
            img_ids=torch.zeros(16, 3),
            txt_ids=torch.zeros(text_tokens, 3),
            return_dict=False,
        )[0]


def skip(*indices):
    apply_layer_skip(model, LayerSkipConfig(indices=list(indices), fqn="transformer_blocks"))


print("diffusers", diffusers.__version__)
whole = run(5)
skip(1)
one_skipped = run(5)
one_skipped_16 = run(16)
HookRegistry.check_if_exists_or_initialize(model).remove_hook("layer_skip_hook", recurse=True)
skip(1, 2)
two_skipped = run(5)
HookRegistry.check_if_exists_or_initialize(model).remove_hook("layer_skip_hook", recurse=True)
blocks = list(model.transformer_blocks)
model.transformer_blocks = torch.nn.ModuleList([blocks[0], blocks[2]])
left_out_16 = run(16)
model.transformer_blocks = torch.nn.ModuleList([blocks[0]])
two_left_out = run(5)

print("tokens of the picture:", whole.shape[1], "- with block 1 skipped:", one_skipped.shape[1])
difference = (one_skipped_16 - left_out_16).abs().max().item()
print(f"16 text tokens, block 1 skipped against left out: they differ by {difference:.3f}")
print("blocks 1 and 2 skipped against left out: equal", torch.equal(two_skipped, two_left_out))
if one_skipped.shape[1] != 5 or difference < 1e-3 or not torch.equal(two_skipped, two_left_out):
    sys.exit("changed: a skipped block hands text and image on in their own places")
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
