#!/usr/bin/env bash
# Expected: leaving "with model.disable_adapter():" leaves the model as it was before.
# Seen: a merged adapter is unmerged on the way in and not merged again on the way out. The model goes on with the
# LoRA as extra matmuls, and bfloat16 base weights are no longer those they were, because a merge and an
# unmerge each round.
# Version: peft 0.21.2. Source: tuners/lora/layer.py, Linear.forward unmerges when disable_adapters is set;
# peft_model.py, disable_adapter only sets the flag back.
# Matters: one comparison with the base model takes the speed of a merged model away, and what was measured or
# cut into shards while it was merged no longer holds.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 peft==0.21.2

cat > "$folder/show.py" <<'PYTHON'
"""Merges a bfloat16 LoRA, calls the model once with the adapter disabled, and looks again."""

import sys

import peft
import torch
from peft import LoraConfig, get_peft_model

torch.manual_seed(0)
linear = torch.nn.Linear(64, 64, dtype=torch.bfloat16)
base = linear.weight.detach().clone()
model = get_peft_model(
    torch.nn.Sequential(linear), LoraConfig(target_modules=["0"], init_lora_weights=False)
)
layer = model.base_model.model[0]
inputs = torch.randn(1, 64, dtype=torch.bfloat16)
model.merge_adapter()
print("peft", peft.__version__)
merged_before, weight_before = layer.merged, layer.base_layer.weight.detach().clone()
with torch.no_grad(), model.disable_adapter():
    model(inputs)
merged_after = layer.merged
with torch.no_grad():
    model(inputs)
drift = (layer.base_layer.weight - base).abs().max().item()
print("merged before:", merged_before, "- after disable_adapter:", merged_after, "- a call later:", layer.merged)
print("weight as it was before:", torch.equal(layer.base_layer.weight, weight_before))
print(f"base weight off by up to {drift:.5f}")
if not merged_before or merged_after or layer.merged or drift == 0:
    sys.exit("changed: the adapter is merged again, or the weights come back exactly")
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
