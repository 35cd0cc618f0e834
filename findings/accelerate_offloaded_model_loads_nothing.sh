#!/usr/bin/env bash
# Expected: load_state_dict into an offloaded model loads the weights, or raises.
# Seen: it returns "All keys matched successfully" and the model goes on with its old weights. torch warns of
# no-ops with meta parameters; accelerate says nothing, and strict=True doesn't mind either.
# Version: accelerate 1.15.0, torch 2.13.0. Source: big_modeling.py, cpu_offload: parameters are meta tensors
# outside a forward, the real ones lie in the hook's weights_map, which nobody updates.
# Matters: loading a fine-tuned checkpoint or an EMA into a pipeline after enable_sequential_cpu_offload() draws
# the old model's pictures, with a success message in the log.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 accelerate==1.15.0

cat > "$folder/show.py" <<'PYTHON'
"""Loads zeros into an offloaded model, and calls it."""

import sys
import warnings

import accelerate
import torch
from accelerate import cpu_offload
from accelerate.hooks import remove_hook_from_module

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
zeros = {name: torch.zeros_like(weight) for name, weight in model.state_dict().items()}
inputs = torch.randn(1, 4)


def largest():
    with torch.no_grad():
        return model(inputs).abs().max().item()


print("accelerate", accelerate.__version__, "torch", torch.__version__)
before = largest()
cpu_offload(model, torch.device("cpu"))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    answer = str(model.load_state_dict(zeros, strict=True))
after = largest()
remove_hook_from_module(model, recurse=True)
unhooked = largest()
print("zeros into the offloaded model:", answer)
print("warnings of a no-op:", sum("no-op" in str(warning.message) for warning in caught))
print(f"largest output: before {before:.4f}, after loading {after:.4f}, offloading taken off {unhooked:.4f}")
model.load_state_dict(zeros)
print(f"zeros loaded without offloading: {largest():.4f}")
if "matched" not in answer or after != before or unhooked != before or largest() != 0:
    sys.exit("changed: weights reach an offloaded model, or are refused")
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
