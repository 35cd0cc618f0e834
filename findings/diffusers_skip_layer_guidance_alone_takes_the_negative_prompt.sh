#!/usr/bin/env bash
# Expected: SkipLayerGuidance without classifier-free guidance (guidance_scale=1) makes two passes with the prompt,
# one of them with layers left out, and guides by their difference.
# Seen: its second pass gets the NEGATIVE prompt and leaves no layer out. The result is plain classifier-free
# guidance, which was switched off, under another scale.
# Version: diffusers 0.42.1. Source: guiders/skip_layer_guidance.py: prepare_inputs takes index 1 (the negative) for
# the second of two passes, and is_conditional, which decides on skipping, knows passes 1 and 3 only.
# Matters: models with distilled guidance are run like this; both the quality and what a cache keyed by pass
# keeps are wrong, without a word.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 diffusers==0.42.1

cat > "$folder/show.py" <<'PYTHON'
"""Follows the guider's protocol with and without classifier-free guidance."""

import sys

import diffusers
import torch
from diffusers import LayerSkipConfig, WanTransformer3DModel
from diffusers.guiders import SkipLayerGuidance

torch.manual_seed(0)
model = WanTransformer3DModel(
    patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
    text_dim=8, freq_dim=16, ffn_dim=16, num_layers=3,
).eval()
latents, timestep = torch.randn(1, 4, 1, 8, 8), torch.tensor([500])
prompt, negative = torch.randn(1, 5, 8), torch.randn(1, 5, 8)


def predict(text):
    with torch.no_grad():
        return model(latents, timestep, text, return_dict=False)[0]


def predictions_at(guidance_scale):
    guider = SkipLayerGuidance(
        guidance_scale=guidance_scale,
        skip_layer_guidance_scale=2.5,
        skip_layer_guidance_start=0.0,
        skip_layer_guidance_stop=1.0,
        skip_layer_config=LayerSkipConfig(indices=[1], fqn="blocks"),
    )
    guider.set_state(step=5, num_inference_steps=10, timestep=timestep)
    predictions = {}
    for batch in guider.prepare_inputs({"text": (prompt, negative)}):
        guider.prepare_models(model)
        predictions[getattr(batch, guider._identifier_key)] = predict(batch.text)
        guider.cleanup_models(model)
    return predictions


print("diffusers", diffusers.__version__)
both, alone = predictions_at(5.0), predictions_at(1.0)
for title, predictions in {"with classifier-free guidance": both, "alone": alone}.items():
    print(title + ": passes", *predictions)
    skipped = predictions["pred_cond_skip"]
    print("  layers left out, equal to the prompt's plain pass:", torch.equal(skipped, predict(prompt)))
    print("  layers left out, equal to the negative's plain pass:", torch.equal(skipped, predict(negative)))
plain = {title: [torch.equal(p["pred_cond_skip"], predict(text)) for text in (prompt, negative)]
         for title, p in {"both": both, "alone": alone}.items()}
if plain != {"both": [False, False], "alone": [False, True]}:
    sys.exit("changed: the second pass leaves layers out, or gets the prompt")
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
