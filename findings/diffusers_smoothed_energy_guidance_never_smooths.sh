#!/usr/bin/env bash
# Expected: SmoothedEnergyGuidance blurs the attention queries of its layers in a third pass and guides by that.
# Seen: it makes the third pass and blurs nothing in it: the prediction is bit for bit that of the first pass, so
# the guidance term is 0 whatever its scale, at a third more time.
# Version: diffusers 0.42.1. Source: guiders/smoothed_energy_guidance.py: prepare_models asks for
# _count_prepared > 1 but, unlike the other guiders, never counts it up.
# Matters: a planner that plans for three passes pays for one that changes nothing; the hooks work when put on by
# hand.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 diffusers==0.42.1

cat > "$folder/show.py" <<'PYTHON'
"""Follows the guider's protocol and compares its passes; then puts the same hooks on by hand."""

import sys

import diffusers
import torch
from diffusers import SmoothedEnergyGuidanceConfig, WanTransformer3DModel
from diffusers.guiders import SmoothedEnergyGuidance
from diffusers.hooks.smoothed_energy_guidance_utils import _apply_smoothed_energy_guidance_hook

torch.manual_seed(0)
model = WanTransformer3DModel(
    patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
    text_dim=8, freq_dim=16, ffn_dim=16, num_layers=2,
).eval()
latents, timestep = torch.randn(1, 4, 1, 8, 8), torch.tensor([500])
prompt, negative = torch.randn(1, 5, 8), torch.randn(1, 5, 8)


def predict(text):
    with torch.no_grad():
        return model(latents, timestep, text, return_dict=False)[0]


def config():
    return SmoothedEnergyGuidanceConfig(indices=[0, 1], fqn="blocks")


guider = SmoothedEnergyGuidance(
    guidance_scale=5.0, seg_guidance_scale=2.8, seg_guidance_start=0.0, seg_guidance_stop=1.0,
    seg_guidance_config=config(),
)
guider.set_state(step=5, num_inference_steps=10, timestep=timestep)
predictions = {}
for batch in guider.prepare_inputs({"text": (prompt, negative)}):
    guider.prepare_models(model)
    predictions[getattr(batch, guider._identifier_key)] = predict(batch.text)
    guider.cleanup_models(model)
plain = predict(prompt)
_apply_smoothed_energy_guidance_hook(model, config(), 3.0, name="by hand")
by_hand = (predict(prompt) - plain).abs().max().item()
unchanged = torch.equal(predictions["pred_cond_seg"], plain)
print("diffusers", diffusers.__version__)
print("passes:", *predictions)
print("the smoothed pass equals the plain one bit for bit:", unchanged)
print(f"with the hooks put on by hand it would differ by {by_hand:.5f}")
if len(predictions) != 3 or not unchanged:
    sys.exit("changed: the third pass is smoothed")
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
