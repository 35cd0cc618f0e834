#!/usr/bin/env bash
# Expected: unload() gives the base model back, without the adapters; merge_and_unload() is there to keep them.
# Seen: after merge_adapter(), unload() keeps the merged weights: the "base" model it returns draws with the LoRA
# in it, nothing in it tells so, and there is no adapter left by which it could be unmerged.
# Version: peft 0.21.2. Source: tuners/tuners_utils.py, BaseTuner._unload_and_optionally_merge: with merge=False
# it takes get_base_layer() as it stands and never calls unmerge.
# Matters: servers merge for speed and unload to change the adapter; the next adapter goes on top of the last.
# Call unmerge_adapter() first.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 peft==0.21.2

cat > "$folder/show.py" <<'PYTHON'
"""Unloads an adapter that is merged and one that isn't."""

import sys

import peft
import torch
from peft import LoraConfig, get_peft_model


def weight_after_unload(merge):
    """How far the weight is from the base model's once the adapter was unloaded."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(8, 8)
    base = linear.weight.detach().clone()
    config = LoraConfig(target_modules=["0"], init_lora_weights=False)
    model = get_peft_model(torch.nn.Sequential(linear), config)
    if merge:
        model.merge_adapter()
    unloaded = model.unload()
    parts = [type(part).__name__ for part in unloaded]
    return parts, (unloaded[0].weight - base).abs().max().item()


print("peft", peft.__version__)
plain_parts, plain = weight_after_unload(merge=False)
merged_parts, merged = weight_after_unload(merge=True)
print(f"never merged: {plain_parts}, off the base weights by {plain:.4f}")
print(f"merged first: {merged_parts}, off the base weights by {merged:.4f}")
if plain != 0 or merged == 0 or plain_parts != merged_parts:
    sys.exit("changed: unload gives the base weights back")
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
