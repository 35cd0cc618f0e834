#!/usr/bin/env bash
# Expected: `ulysses_anything`, which is there for sequences that don't divide, leaves out the keys that the mask names.
# Seen: on three ranks with 7 tokens (3 + 2 + 2) the masks of ranks 1 and 2 are padded to 3 each, put one behind the
# other, and what is too long is cut off the end: a key that counts is left out, the last one's place is another's, and
# nothing is said. With 8 tokens (3 + 3 + 2) only the last rank's mask is padded, and the result is right.
# Version: diffusers 0.42.1. Source: models/attention_dispatch.py, TemplatedUlyssesAnythingAttention.forward: F.pad to
# the largest local size, all_gather, then attn_mask[..., : sum(mask_local_sizes)].
# Matters: Qwen-Image masks padded prompts: a batch of prompts of unlike lengths over three or more GPUs, with a text
# or a picture that they don't divide, gives other pictures than one GPU.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 diffusers==0.42.1

cat > "$folder/show.py" <<'PYTHON'
"""The same masked attention on one process and over three, for 7 and for 8 tokens."""

import os
import sys

import diffusers
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from diffusers import ContextParallelConfig
from diffusers.models._modeling_parallel import ParallelConfig
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch.distributed.device_mesh import init_device_mesh

RANKS, HEADS, SIZES = 3, 3, (7, 8)


def attend(rank, folder, sizes, found):
    """Fills in how far each rank's share is from one process's."""
    store = dist.FileStore(os.path.join(folder, "store"), RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    mesh = init_device_mesh("cpu", (1, RANKS), mesh_dim_names=("ring", "ulysses"))
    config = ParallelConfig(ContextParallelConfig(ulysses_degree=RANKS, ulysses_anything=True))
    config.setup(rank, RANKS, torch.device("cpu"), mesh=mesh)
    for tokens in sizes:
        torch.manual_seed(0)
        whole = [torch.randn(1, tokens, HEADS, 8) for _ in range(3)]
        mask = torch.ones(1, tokens, dtype=torch.bool)
        mask[0, 1] = False
        alone = dispatch_attention_fn(*whole, attn_mask=mask, backend="native")
        mine = [tensor.tensor_split(RANKS, dim=1)[rank].contiguous() for tensor in (*whole, mask)]
        *parts, mask = mine
        shared = dispatch_attention_fn(*parts, attn_mask=mask, backend="native", parallel_config=config)
        error = (shared - alone.tensor_split(RANKS, dim=1)[rank]).abs().max().reshape(1)
        dist.all_reduce(error, dist.ReduceOp.MAX)
        if rank == 0:
            found[tokens] = float(error)
    dist.destroy_process_group()


if __name__ == "__main__":
    found = mp.Manager().dict()
    mp.spawn(attend, (sys.argv[1], SIZES, found), RANKS)
    print("diffusers", diffusers.__version__)
    for tokens, error in sorted(found.items()):
        print(f"{tokens} tokens over {RANKS} ranks: off by {error:.1e}")
    if not (found[7] > 1e-2 and found[8] < 1e-5):
        sys.exit("changed: masks are right for sizes that don't divide, or wrong for all")
PYTHON
OMP_NUM_THREADS=1 timeout 300 "$folder/venv/bin/python" "$folder/show.py" "$folder"
