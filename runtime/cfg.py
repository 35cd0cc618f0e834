"""CFG parallelism for pipelines that double the batch: each rank takes a share of the samples.

The split is made at the transformer's arguments and undone at its output, so that guidance is the
pipeline's own.
"""

import inspect
import warnings
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from ditplan.profiles.errors import PlanWarning
from ditplan.profiles.family import ModelFamily
from ditplan.profiles.splits import split_bounds, split_sizes
from ditplan.runtime.collectives import all_gather_uneven
from ditplan.runtime.groups import AxisGroup
from ditplan.runtime.modules import replace_forward


def apply_cfg(model: nn.Module, family: ModelFamily, group: AxisGroup, undo: ExitStack) -> None:
    """Splits the batch of each call over the group; closing `undo` takes that away again.

    A call with fewer samples than ranks (skip-layer guidance's third pass) is run whole by every
    rank, with a warning.
    """
    ranks = group.size
    names = tuple(inspect.signature(type(model).forward).parameters)[1:]
    whole = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        given = dict(zip(names, args, strict=False)) | kwargs
        samples = given[family.batched_inputs[0]].shape[0]
        if samples < ranks:
            warnings.warn(
                f"a call with {samples} sample(s) can't be split over {ranks} cfg ranks: each "
                "runs it whole",
                PlanWarning,
                stacklevel=2,
            )
            return whole(**given)
        start, end = split_bounds(samples, ranks, group.index)
        shared = {
            name: _share(given[name], samples, start, end)
            for name in family.batched_inputs
            if given.get(name) is not None
        }
        output = whole(**(given | shared))
        sizes = split_sizes(samples, ranks)
        if isinstance(output, tuple):
            return (all_gather_uneven(output[0], 0, sizes, group), *output[1:])
        return type(output)(sample=all_gather_uneven(output.sample, 0, sizes, group))

    replace_forward(model, forward, undo)


def _share(value: Any, samples: int, start: int, end: int) -> Any:
    """This rank's samples of a batched argument; what has no full batch dim is for all alike."""
    if isinstance(value, (list, tuple)):
        return type(value)(_share(item, samples, start, end) for item in value)
    if isinstance(value, torch.Tensor) and value.ndim and value.shape[0] == samples:
        return value[start:end]
    return value
