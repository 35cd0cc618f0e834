#!/usr/bin/env bash
# Expected: the embeddings of one image, given for a batch of two samples, serve both, or are refused.
# Seen: they are cut up: the first sample attends to the first half of the image's tokens, the second to the rest.
# Three images for two samples are cut likewise: one and a half for each. No error comes, shapes are right.
# Version: diffusers 0.42.1. Source: models/attention_processor.py, IPAdapterAttnProcessor2_0.__call__ (and FLUX's
# in models/transformers/transformer_flux.py): ip_key.view(batch_size, -1, heads, head_dim) moves samples into tokens.
# Matters: engines that split or double the batch (guidance on two ranks, several pictures for a prompt) and leave
# the image embeddings as they were draw a plausible, wrong picture.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 diffusers==0.42.1

cat > "$folder/show.py" <<'PYTHON'
"""Gives attention with an IP-Adapter one image's embeddings for two samples."""

import sys

import diffusers
import torch
from diffusers.models.attention_processor import Attention, IPAdapterAttnProcessor2_0

torch.manual_seed(0)
attention = Attention(query_dim=16, cross_attention_dim=16, heads=2, dim_head=8)
attention.set_processor(IPAdapterAttnProcessor2_0(16, 16, num_tokens=(4,), scale=1.0))
sample, text = torch.randn(1, 9, 16), torch.randn(1, 5, 16)
image = torch.randn(1, 1, 4, 16)


def attend(samples, embeddings):
    with torch.no_grad():
        return attention(
            sample.expand(samples, -1, -1), (text.expand(samples, -1, -1), [embeddings])
        )


print("diffusers", diffusers.__version__)
whole = attend(1, image)[0]
first, second = attend(2, image)
halves = attend(1, image[:, :, :2])[0], attend(1, image[:, :, 2:])[0]
shared = torch.allclose(first, whole), torch.allclose(second, whole)
cut = torch.allclose(first, halves[0], atol=1e-5), torch.allclose(second, halves[1], atol=1e-5)
three = tuple(attend(2, image.expand(3, -1, -1, -1)).shape)
print("two samples, one image of 4 tokens: both see all of it:", shared)
print("the first sees tokens 0 and 1 alone, the second 2 and 3:", cut)
print("two samples, three images: accepted, shape", three)
if shared != (False, False) or cut != (True, True) or three != (2, 9, 16):
    sys.exit("changed: the image serves both samples, or is refused")
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
