"""Sketches: few numbers of a large tensor that tell whether two ranks have about the same one.

Ranks that run compiled code, or unlike devices, don't round alike, so bits can't be compared once
steps were computed. What is compared are projections on random directions of signs: of a
difference of norm d each is about d in size (Johnson and Lindenstrauss).
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ditplan.runtime.admission.readback import Readback

DIRECTIONS = 8
ROW = 4096
MOST_ROWS = 1 << 16
LARGEST_DRIFT = 2e-3
"""In units of the norm, for latents of 32 bits; that of 16 bits is `LARGEST_DRIFT_OF_HALF`."""
LARGEST_DRIFT_OF_HALF = 3e-2


def sketch_of(value: Any) -> torch.Tensor:
    """(DIRECTIONS + 2) numbers of the floating-point tensors in a value, where they lie:
    projections, their norm and the largest drift that is due to rounding.
    """
    tensors = [
        leaf.detach()
        for leaf in pytree.tree_leaves(value)
        if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
    ]
    if not tensors:
        return torch.zeros(DIRECTIONS + 2)
    flat = [tensor.reshape(-1).float() for tensor in tensors]
    whole = flat[0] if len(flat) == 1 else torch.cat(flat)
    if missing := -whole.numel() % ROW:
        whole = torch.nn.functional.pad(whole, (0, missing))
    whole = whole.view(-1, ROW)
    columns, signs, allowed, allowed_of_half = _constants(whole.device)
    if len(whole) > MOST_ROWS:
        signs = signs.repeat(-(-len(whole) // MOST_ROWS))
    if any(tensor.dtype.itemsize < 4 for tensor in tensors):
        allowed = allowed_of_half
    return torch.cat([signs[: len(whole)] @ (whole @ columns), whole.norm()[None], allowed])


def steps_of(sketches: Sequence[Readback]) -> torch.Tensor:
    """Sketches of a call's steps, one a row, in the host's memory."""
    rows = [row for sketch in sketches for row in sketch.tensors()]
    return torch.stack(rows) if rows else torch.zeros(0, DIRECTIONS + 2)


def drifted(found: Sequence[torch.Tensor]) -> tuple[int, list[int]] | None:
    """The first step at which sketches (steps, DIRECTIONS + 2) of ranks differ, and whose do from
    the first's.
    """
    first = found[0].nan_to_num()
    limit = first[:, -1:] * first[:, -2:-1]
    apart = [((one.nan_to_num() - first)[:, :-1].abs() > limit).any(1) for one in found]
    steps = torch.stack(apart).any(0).nonzero().flatten().tolist()
    if not steps:
        return None
    return steps[0], [number for number, of_rank in enumerate(apart) if bool(of_rank[steps[0]])]


def is_rounding(found: Sequence[dict[str, torch.Tensor]]) -> bool:
    """Whether the tensors that ranks have by the same names differ by rounding alone: none of
    their numbers by more than a small share of the largest.
    """
    first = found[0]
    for of_rank in found:
        if of_rank.keys() != first.keys():
            return False
        for name, one in of_rank.items():
            other = first[name]
            if one.dtype != other.dtype or one.shape != other.shape:
                return False
            share = LARGEST_DRIFT_OF_HALF if one.dtype.itemsize < 4 else LARGEST_DRIFT
            limit = share * float(other.float().abs().max()) if other.numel() else 0.0
            if not bool(((one.float() - other.float()).abs() <= limit).all()):
                return False
    return True


@cache
def _constants(device: torch.device) -> tuple[torch.Tensor, ...]:
    """Signs of columns (ROW, DIRECTIONS) and of rows (MOST_ROWS), and the largest drifts (1)."""
    generator = torch.Generator().manual_seed(20)
    signs = (
        2.0 * torch.randint(0, 2, shape, generator=generator) - 1
        for shape in ((ROW, DIRECTIONS), (MOST_ROWS,))
    )
    drifts = (torch.tensor([one]) for one in (LARGEST_DRIFT, LARGEST_DRIFT_OF_HALF))
    return tuple(one.to(device) for one in (*signs, *drifts))
