#!/usr/bin/env bash
# Expected: "100gb" is another spelling of "100GB", as in most tools, or is refused.
# Seen: a small b means bits: max_memory={"cpu": "160kb"} is 20,000 bytes. A model that fits into 160KB is laid out
# as if only an eighth were there; whole layers go to the disk, and nothing is said of the unit.
# Version: accelerate 1.15.0. Source: utils/modeling.py, convert_file_size_to_int upper-cases the text for the
# comparison, then divides by 8 where the original ends with "b".
# Matters: max_memory of from_pretrained and load_checkpoint_and_dispatch comes from hand-written configs; "80gb"
# for an 80 GB GPU offloads most of a diffusion transformer and makes it many times slower.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 accelerate==1.15.0

cat > "$folder/show.py" <<'PYTHON'
"""Lays a model out under the same limit in two spellings."""

import sys

import accelerate
import torch
from accelerate import infer_auto_device_map
from accelerate.utils import compute_module_sizes
from accelerate.utils.modeling import convert_file_size_to_int

model = torch.nn.Sequential(*[torch.nn.Linear(64, 64) for _ in range(8)])
size = compute_module_sizes(model)[""]
print("accelerate", accelerate.__version__, "- the model has", size, "bytes")
layouts = {}
for limit in "160KB", "160kb":
    layout = infer_auto_device_map(model, max_memory={"cpu": limit})
    layouts[limit] = sorted({str(device) for device in layout.values()})
    print(f"max_memory {limit} = {convert_file_size_to_int(limit)} bytes: layers on {layouts[limit]}")
if layouts != {"160KB": ["cpu"], "160kb": ["disk"]} or convert_file_size_to_int("80gb") != 10**10:
    sys.exit("changed: both spellings mean the same")
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
