#!/usr/bin/env bash
# Expected: model.set_attention_backend(...) concerns that model, and reset_attention_backend() takes it back.
# Seen: it also becomes the default of every other model in the process, those made before and after, and after the
# reset it still is: only the model that was reset goes by the default, which is no longer the old one.
# Version: diffusers 0.42.1. Source: models/modeling_utils.py, set_attention_backend ends with
# _AttentionBackendRegistry.set_active_backend; reset_attention_backend clears the processors alone.
# Matters: trying a kernel on the transformer changes the VAE's and the next pipeline's numbers and speed, and a
# comparison "with and without" in one process measures the new backend twice.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 diffusers==0.42.1

cat > "$folder/show.py" <<'PYTHON'
"""Sets a backend on one of two Wan transformers and looks which kernel each of them calls."""

import sys

import diffusers
import torch
from diffusers import WanTransformer3DModel


def made():
    torch.manual_seed(0)
    return WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
        text_dim=8, freq_dim=16, ffn_dim=16, num_layers=1,
    ).eval()


def kernel(model):
    """Which of torch's attention kernels a call of the model ends in."""
    inputs = torch.randn(1, 4, 1, 8, 8), torch.tensor([500]), torch.randn(1, 5, 8)
    with torch.no_grad(), torch.profiler.profile() as profile:
        model(*inputs)
    names = {event.key for event in profile.key_averages()}
    return "math" if "aten::_scaled_dot_product_attention_math" in names else "flash"


one, other = made(), made()
print("diffusers", diffusers.__version__)
seen = {"at first": (kernel(one), kernel(other))}
one.set_attention_backend("_native_math")
seen["set to math on one"] = kernel(one), kernel(other)
one.reset_attention_backend()
seen["reset on one"] = kernel(one), kernel(other)
for when, (of_one, of_other) in seen.items():
    print(f"{when}: one calls {of_one}, the other calls {of_other}")
print("a model made afterwards calls", kernel(made()))
if list(seen.values()) != [("flash", "flash"), ("math", "math"), ("math", "math")]:
    sys.exit("changed: a backend stays with its model, or the reset takes it back")
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
