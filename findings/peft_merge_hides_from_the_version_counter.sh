#!/usr/bin/env bash
# Expected: a change in place moves a tensor's _version, by which torch itself tells that a weight was changed.
# Seen: merging a LoRA changes the base weight in place, in the same tensor and storage, and _version stays.
# Version: peft 0.21.2, torch 2.13.0. Source: tuners/lora/layer.py, Linear.merge writes to base_layer.weight.data
# (an alias with a counter of its own).
# Matters: whatever keeps something computed from a weight (quantized copies, shards already sent to ranks,
# captured graphs) and looks at identity, address and _version takes the merged weight for the old one.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 peft==0.21.2

cat > "$folder/show.py" <<'PYTHON'
"""Merges a LoRA and looks at the base weight's version counter."""

import sys

import peft
import torch
from peft import LoraConfig, get_peft_model

torch.manual_seed(0)
model = get_peft_model(
    torch.nn.Sequential(torch.nn.Linear(4, 4)), LoraConfig(target_modules=["0"], init_lora_weights=False)
)
weight = model.base_model.model[0].base_layer.weight


def state():
    return id(weight), weight.data_ptr(), weight._version


print("peft", peft.__version__, "torch", torch.__version__)
before, values = state(), weight.detach().clone()
model.merge_adapter()
changed = (weight - values).abs().max().item()
same_tensor = model.base_model.model[0].base_layer.weight is weight
print(f"merged: weight changed by up to {changed:.4f}, same tensor: {same_tensor}")
print("identity, address and _version unchanged:", state() == before)
with torch.no_grad():
    weight.add_(1)
print("after an add_ of one's own, _version unchanged:", state() == before)
unseen = same_tensor and changed > 0
if not unseen or state() == before or state()[2] != before[2] + 1:
    sys.exit("changed: the merge moves the counter, or makes a new tensor")
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
