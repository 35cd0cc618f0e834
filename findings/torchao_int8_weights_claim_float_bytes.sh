#!/usr/bin/env bash
# Expected: after quantize_ to int8, numel() * element_size() or the storage's nbytes() tell a quarter of float32.
# Seen: both tell the full float32 size, the dtype is float32, and every weight lies at address 0. Only the parts
# of the subclass (qdata, scale) know better: about a quarter.
# Version: torchao 0.18.0, torch 2.13.0. Source: torchao/quantization/quantize_/workflows/int8/int8_tensor.py:
# Int8Tensor is a wrapper that reports the original dtype and has no storage of its own.
# Matters: memory planners and diffusers' get_memory_footprint see no saving, and whoever recognizes tied weights
# by data_ptr() takes all quantized weights for one.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 torchao==0.18.0 numpy==2.4.6

cat > "$folder/show.py" <<'PYTHON'
"""Counts the bytes of a quantized model in the usual ways and by its real parts."""

import importlib.metadata
import sys

import torch
from torchao.quantization import Int8WeightOnlyConfig, quantize_

model = torch.nn.Sequential(torch.nn.Linear(256, 256, bias=False), torch.nn.Linear(256, 256, bias=False))


def usual():
    by_elements = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    by_storage = sum(weight.untyped_storage().nbytes() for weight in model.parameters())
    addresses = {weight.data_ptr() for weight in model.parameters()}
    return by_elements, by_storage, len(addresses)


print("torchao", importlib.metadata.version("torchao"), "torch", torch.__version__)
before = usual()
quantize_(model, Int8WeightOnlyConfig())
after = usual()
parts = [part for weight in model.parameters() for part in (weight.qdata, weight.scale)]
real = sum(part.numel() * part.element_size() for part in parts)
print("before: bytes by elements, bytes by storage, addresses:", *before)
print("after:  bytes by elements, bytes by storage, addresses:", *after)
print("after:  bytes of the parts:", real, "- dtype", model[0].weight.dtype)
if after != (before[0], before[1], 1) or real > before[0] / 3 or before[2] != 2:
    sys.exit("changed: the usual ways see the int8 size, or addresses differ")
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
