#!/usr/bin/env bash
# Expected: LayerSkipConfig(fqn="auto") finds the list of blocks of a model, the same one in each process.
# Seen: FLUX has two such lists, and which of them is found changes from process to process with Python's
# hash seed: once transformer_blocks.1 is skipped, once single_transformer_blocks.1. Nothing is said.
# Version: diffusers 0.42.1. Source: hooks/_common.py makes _ALL_TRANSFORMER_BLOCK_IDENTIFIERS a tuple of a
# set of strings; hooks/layer_skip.py (_apply_layer_skip_hook) takes the first that the model has.
# Matters: skip-layer guidance draws another picture on another day, and ranks that share one picture
# skip different blocks. Name fqn explicitly.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1

cat > "$folder/show.py" <<'PYTHON'
"""Asks, under several hash seeds, which block of a FLUX transformer "auto" skips."""

import importlib.metadata
import os
import subprocess
import sys

QUESTION = """
from diffusers import FluxTransformer2DModel, LayerSkipConfig
from diffusers.hooks import apply_layer_skip

model = FluxTransformer2DModel(
    patch_size=1, in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=16,
    num_attention_heads=2, joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(4, 4, 8),
)
apply_layer_skip(model, LayerSkipConfig(indices=[1], fqn="auto"))
print(*[name for name, part in model.named_modules() if hasattr(part, "_diffusers_hook")])
"""

print("diffusers", importlib.metadata.version("diffusers"))
answers = {}
for seed in "0", "1", "2":
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", QUESTION],
        env={**os.environ, "PYTHONHASHSEED": seed},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    answers[seed] = result.stdout.split()[0]
    print(f"PYTHONHASHSEED={seed}: skipped {answers[seed]}")
if set(answers.values()) != {"transformer_blocks.1", "single_transformer_blocks.1"}:
    sys.exit("changed: the blocks no longer depend on the hash seed")
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
