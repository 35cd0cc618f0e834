#!/usr/bin/env bash
# Expected: all_reduce(MAX) with a NaN on any rank gives NaN, as torch.max does, or it loses every NaN.
# Seen: with gloo only rank 0's NaN comes through; a NaN on any other rank disappears, on all ranks, and the result
# is a sound-looking number. MIN does the same.
# Version: torch 2.13.0 (CPU). Source: gloo/math.h, max and min compare with "<" and keep the left operand; which
# rank stands left is a matter of the algorithm.
# Matters: "is any rank's picture broken, is the largest error small" asked by MAX misses a rank that computes NaN.
# Reduce isnan() by SUM instead.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6

cat > "$folder/show.py" <<'PYTHON'
"""Reduces a tensor in which each rank has a NaN at its own index."""

import datetime
import sys
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing

RANKS = 3


def reduce(rank, folder):
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=RANKS,
        timeout=datetime.timedelta(seconds=60),
    )
    seen = {}
    for operation in "MAX", "MIN":
        values = torch.ones(RANKS)
        values[rank] = float("nan")
        dist.all_reduce(values, getattr(dist.ReduceOp, operation))
        seen[operation] = [value != value for value in values.tolist()]
    everywhere = [None] * RANKS
    dist.all_gather_object(everywhere, seen)
    dist.barrier()
    dist.destroy_process_group()
    if rank == 0:
        for operation in "MAX", "MIN":
            for of_rank in range(RANKS):
                kept = [ranks_view[operation][of_rank] for ranks_view in everywhere]
                print(f"{operation}, NaN on rank {of_rank}: NaN in the result of rank 0, 1, 2: {kept}")
        if any(view[op] != [True, False, False] for view in everywhere for op in ("MAX", "MIN")):
            sys.exit("changed: a NaN of another rank comes through, or rank 0's doesn't")


if __name__ == "__main__":
    print("torch", torch.__version__)
    print("torch.max with a NaN:", torch.tensor([1.0, float("nan")]).max().item())
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(reduce, (folder,), RANKS)
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
