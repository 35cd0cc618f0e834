#!/usr/bin/env bash
# Expected: forward(return_dict=False) returns a tuple, so that [0] is the whole prediction.
# Seen: Kandinsky 5's transformer returns the bare tensor: [0] is the FIRST SAMPLE of the batch, and under guidance
# by a doubled batch the negative half of it. Likewise Qwen-Image's ControlNet returns a bare list ([0] is the
# first residual), although its documentation promises a tuple.
# Version: diffusers 0.42.1. Source: models/transformers/transformer_kandinsky.py and models/controlnets/
# controlnet_qwenimage.py, the last lines of forward.
# Matters: engines that call any transformer with return_dict=False and take [0] go on with one sample; later
# broadcasting can hide it. isinstance(result, tuple) must be asked first.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 diffusers==0.42.1

cat > "$folder/show.py" <<'PYTHON'
"""Calls two models for a plain result and looks at its type."""

import sys

import diffusers
import torch
from diffusers import Kandinsky5Transformer3DModel, QwenImageControlNetModel

torch.manual_seed(0)
transformer = Kandinsky5Transformer3DModel(
    in_visual_dim=4, in_text_dim=8, in_text_dim2=8, time_dim=16, out_visual_dim=4, model_dim=32, ff_dim=32,
    num_text_blocks=1, num_visual_blocks=1, axes_dims=(4, 6, 6),
).eval()
control = QwenImageControlNetModel(
    patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
    joint_attention_dim=16, axes_dims_rope=(4, 6, 6),
).eval()
with torch.no_grad():
    prediction = transformer(
        hidden_states=torch.randn(2, 1, 4, 4, 4),
        encoder_hidden_states=torch.randn(2, 5, 8),
        timestep=torch.tensor([500.0, 500.0]),
        pooled_projections=torch.randn(2, 8),
        visual_rope_pos=[torch.arange(1), torch.arange(2), torch.arange(2)],
        text_rope_pos=torch.arange(5),
        return_dict=False,
    )
    residuals = control(
        hidden_states=torch.randn(1, 16, 16),
        controlnet_cond=torch.randn(1, 16, 16),
        encoder_hidden_states=torch.randn(1, 5, 16),
        encoder_hidden_states_mask=torch.ones(1, 5, dtype=torch.bool),
        timestep=torch.tensor([1.0]),
        img_shapes=[(1, 4, 4)],
        return_dict=False,
    )
print("diffusers", diffusers.__version__)
print("Kandinsky 5:", type(prediction).__name__, tuple(prediction.shape), "- [0]:", tuple(prediction[0].shape))
print("Qwen-Image ControlNet:", type(residuals).__name__, len(residuals), "- [0]:", tuple(residuals[0].shape))
if not isinstance(prediction, torch.Tensor) or not isinstance(residuals, list):
    sys.exit("changed: plain results are tuples")
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
