#!/usr/bin/env bash
# Expected: model.to(torch.bfloat16) makes every floating-point parameter bfloat16, or raises.
# Seen: int8 weights keep dtype float32 without a word while biases and norms become bfloat16, so the first
# parameter, by which diffusers and others tell a model's dtype, says float32 for a model that takes bfloat16.
# Version: torchao 0.18.0, torch 2.13.0. Source: torchao/utils.py, the base class's _to_copy takes device and
# non_blocking out of the parsed arguments and drops the dtype.
# Matters: code that casts latents to "the model's dtype" feeds float32 to a bfloat16 model, and an estimate
# of activations by that dtype is twice too high. Cast first, quantize then.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 torchao==0.18.0 numpy==2.4.6

cat > "$folder/show.py" <<'PYTHON'
"""Casts a model before and after it is quantized, and asks for its dtype."""

import importlib.metadata
import sys

import torch
from torchao.quantization import Int8WeightOnlyConfig, quantize_


def made(*steps):
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.LayerNorm(64))
    for step in steps:
        step(model)
    return {name: weight.dtype for name, weight in model.named_parameters()}, model


def cast(model):
    model.to(torch.bfloat16)


def quantize(model):
    quantize_(model, Int8WeightOnlyConfig())


print("torchao", importlib.metadata.version("torchao"), "torch", torch.__version__)
cast_first, _ = made(cast, quantize)
quantized_first, model = made(quantize, cast)
print("cast, then quantized:", cast_first)
print("quantized, then cast:", quantized_first)
output = model(torch.randn(2, 64, dtype=torch.bfloat16)).dtype
try:
    model(torch.randn(2, 64, dtype=next(model.parameters()).dtype))
    by_first = "runs"
except RuntimeError as error:
    by_first = f"RuntimeError: {error}"
print("called with bfloat16: returns", output)
print("called with the first parameter's dtype:", by_first)
odd = [name for name, dtype in quantized_first.items() if dtype != torch.bfloat16]
if odd != ["0.weight"] or set(cast_first.values()) != {torch.bfloat16} or output != torch.bfloat16:
    sys.exit("changed: the cast reaches quantized weights, or is refused")
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
