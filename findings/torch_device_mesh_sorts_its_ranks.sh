#!/usr/bin/env bash
# Expected: DeviceMesh("cpu", [3, 2, 1, 0]) puts rank 3 first: shard 0 of a tensor lies on rank 3.
# Seen: the mesh says so (get_coordinate), but each of its groups sorts its ranks: get_local_rank, all_gather and
# DTensor's shards go by rank 0, 1, 2, 3. get_coordinate and get_local_rank contradict each other.
# Version: torch 2.13.0. Source: torch/distributed/distributed_c10d.py, new_group sorts the ranks it is given;
# device_mesh.py (get_local_rank asks the group).
# Matters: a planner that orders ranks in the mesh to put neighbours of a ring on one host gets the old order
# without a word, or mixes both orders. Permute which process gets which rank instead.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6

cat > "$folder/show.py" <<'PYTHON'
"""Makes a mesh in reversed order and asks each part of torch who comes first."""

import datetime
import sys
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard, distribute_tensor

RANKS = 3


def ask(rank, folder):
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=RANKS,
        timeout=datetime.timedelta(seconds=60),
    )
    mesh = DeviceMesh("cpu", list(reversed(range(RANKS))), mesh_dim_names=("ring",))
    shard = distribute_tensor(torch.arange(RANKS), mesh, [Shard(0)]).to_local().item()
    everywhere = [None] * RANKS
    answer = (rank, mesh.get_coordinate()[0], mesh.get_local_rank("ring"), shard)
    dist.all_gather_object(everywhere, answer)
    dist.barrier()
    dist.destroy_process_group()
    if rank == 0:
        for of_rank, coordinate, local_rank, index in everywhere:
            print(f"rank {of_rank}: get_coordinate {coordinate}, get_local_rank {local_rank}, holds shard {index}")
        if everywhere != [(of_rank, RANKS - 1 - of_rank, of_rank, of_rank) for of_rank in range(RANKS)]:
            sys.exit("changed: groups keep the mesh's order")


if __name__ == "__main__":
    print("torch", torch.__version__)
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(ask, (folder,), RANKS)
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
