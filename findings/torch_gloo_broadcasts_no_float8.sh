#!/usr/bin/env bash
# Expected: broadcast moves bytes and computes nothing, so any dtype that can be sent can be broadcast.
# Seen: with gloo, broadcast of float8 or uint16 raises "Invalid scalar type", while send and recv carry the same
# tensors. Viewed as uint8 they can be broadcast too.
# Version: torch 2.13.0 (CPU). Source: torch/csrc/distributed/c10d/ProcessGroupGlooDetail.hpp: broadcast picks
# a template by the scalar type, send passes pointer and size.
# Matters: a plan tested with bfloat16 weights on CPU ranks fails with float8 ones (layerwise casting, quantized
# checkpoints) in the collective, and only there.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6

cat > "$folder/show.py" <<'PYTHON'
"""Broadcasts and sends tensors of several dtypes between two ranks."""

import datetime
import sys
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing


def carried(rank, dtype, action):
    tensor = (torch.ones(4) if rank == 0 else torch.zeros(4)).to(dtype)
    try:
        action(tensor)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return "carried" if tensor.float().tolist() == [1.0] * 4 else "wrong values"


def exchange(rank, folder):
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=60),
    )
    actions = {
        "broadcast": lambda tensor: dist.broadcast(tensor, 0),
        "send and recv": lambda tensor: dist.send(tensor, 1) if rank == 0 else dist.recv(tensor, 0),
        "broadcast as uint8": lambda tensor: dist.broadcast(tensor.view(torch.uint8), 0),
    }
    seen = {}
    for dtype in torch.bfloat16, torch.float8_e4m3fn, torch.uint16:
        for name, action in actions.items():
            seen[name, dtype] = carried(rank, dtype, action)
            dist.barrier()
    dist.destroy_process_group()
    if rank == 1:
        for (name, dtype), result in seen.items():
            print(f"{dtype}, {name}: {result}")
        refused = [key for key, result in seen.items() if "Invalid scalar type" in result]
        others = [result for key, result in seen.items() if key not in refused]
        if refused != [("broadcast", torch.float8_e4m3fn), ("broadcast", torch.uint16)] or set(others) != {"carried"}:
            sys.exit("changed: other dtypes are refused")


if __name__ == "__main__":
    print("torch", torch.__version__)
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(exchange, (folder,), 2)
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
