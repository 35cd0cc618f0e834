#!/usr/bin/env bash
# Expected: with one seed, randn for two samples starts with the numbers of randn for one; or the two are unrelated.
# Seen: on the CPU the first sample is the same if a sample has a multiple of 16 numbers; else its last 16 differ
# (all, if it has fewer).
# Version: torch 2.13.0 (CPU). Source: aten/src/ATen/native/cpu/DistributionTemplates.h, normal_fill makes numbers
# by blocks of 16 and draws the last block anew where the size isn't a multiple; below 16 it goes another way.
# Matters: "the same seed, a larger batch" or ranks that draw everybody's noise and keep their own agree for latents
# of 16 channels, and not quite for 4 channels and odd sizes (824x488 is 4x61x103): nearly equal pictures.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6

cat > "$folder/show.py" <<'PYTHON'
"""Draws noise for one and for two samples of several shapes with the same seed."""

import sys

import torch

print("torch", torch.__version__)
different = {}
for shape in (16, 61, 103), (4, 60, 103), (4, 61, 103), (4, 5, 5), (1, 3, 3):
    one = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    two = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    at = (one[0] != two[0]).flatten().nonzero().flatten().tolist()
    different[shape] = at
    print(f"{shape}: {one.numel()} is {one.numel() % 16} over a multiple of 16; {len(at)} numbers differ: {at}")
for shape, at in different.items():
    size = torch.Size(shape).numel()
    if bool(at) != bool(size % 16) or (at and at[0] < size - 16):
        sys.exit("changed: numbers agree for other sizes")
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
