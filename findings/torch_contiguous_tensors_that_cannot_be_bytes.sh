#!/usr/bin/env bash
# Expected: tensor.contiguous().view(torch.uint8) always works: that is how tensors are sent as bytes.
# Seen: one element cut out with a step, or expanded, counts as contiguous whatever its stride; contiguous()
# returns it as it is and view(torch.uint8) raises RuntimeError about stride(-1). With two elements it works.
# Version: torch 2.13.0. Source: c10/core/Contiguity.h (dimensions of size 1 are passed over) against
# aten/src/ATen/native/TensorConversions.cpp, view_dtype (looks at the last stride as it is).
# Matters: a transport that sends everything as bytes works for years and fails for a scale of one number or a
# chunk of one. reshape(-1) does no better; clone(memory_format=torch.contiguous_format) does.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6

cat > "$folder/show.py" <<'PYTHON'
"""Views contiguous tensors of one and of two elements as bytes."""

import sys

import torch

numbers = torch.arange(8, dtype=torch.float32)
tensors = {
    "two elements with step 4": numbers[::4],
    "one element with step 8": numbers[::8],
    "a number expanded to one element": torch.tensor(3.0).expand(1),
}
print("torch", torch.__version__)
outcomes = []
for title, tensor in tensors.items():
    ready = tensor.contiguous()
    try:
        outcome = f"{ready.view(torch.uint8).numel()} bytes"
    except RuntimeError as error:
        outcome = f"RuntimeError: {error}"
    outcomes.append(outcome.split(":")[0])
    print(f"{title}: contiguous {ready.is_contiguous()}, strides {ready.stride()}: {outcome}")
clone = numbers[::8].clone(memory_format=torch.contiguous_format)
flat = numbers[::8].reshape(-1)
print("clone:", clone.stride(), "- reshape(-1):", flat.stride())
if outcomes != ["8 bytes", "RuntimeError", "RuntimeError"]:
    sys.exit("changed: contiguous tensors of one element can be viewed as bytes")
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
