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

from ditplan.profiles.family import ModelFamily
from ditplan.profiles.splits import split_bounds, split_sizes
from ditplan.runtime.collectives import all_gather_uneven
from ditplan.runtime.groups import AxisGroup


def apply_cfg(model: nn.Module, family: ModelFamily, group: AxisGroup, undo: ExitStack) -> None:
    """Splits the batch of each call over the group; closing `undo` takes that away again.

    A call with fewer samples than ranks (skip-layer guidance's third pass) is run whole by every
    rank, with a warning.
    """
    ranks = group.size
    names = tuple(inspect.signature(type(model).forward).parameters)[1:]
    samples_of_call: list[int | None] = []

    def split(
        _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = dict(zip(names, args, strict=False)) | kwargs
        samples = given[family.batched_inputs[0]].shape[0]
        if samples < ranks:
            warnings.warn(
                f"a call with {samples} sample(s) can't be split over {ranks} cfg ranks: each "
                "runs it whole",
                stacklevel=2,
            )
            samples_of_call.append(None)
            return (), given
        samples_of_call.append(samples)
        start, end = split_bounds(samples, ranks, group.index)
        shared = {
            name: _share(given[name], samples, start, end)
            for name in family.batched_inputs
            if given.get(name) is not None
        }
        return (), given | shared

    def gather(_module: nn.Module, _args: Any, output: Any) -> Any:
        samples = samples_of_call.pop()
        if samples is None:
            return output
        sizes = split_sizes(samples, ranks)
        if isinstance(output, tuple):
            return (all_gather_uneven(output[0], 0, sizes, group), *output[1:])
        return type(output)(sample=all_gather_uneven(output.sample, 0, sizes, group))

    undo.callback(model.register_forward_pre_hook(split, with_kwargs=True, prepend=True).remove)
    undo.callback(model.register_forward_hook(gather).remove)


def _share(value: Any, samples: int, start: int, end: int) -> Any:
    """This rank's samples of a batched argument; what has no full batch dim is for all alike."""
    if isinstance(value, (list, tuple)):
        return type(value)(_share(item, samples, start, end) for item in value)
    if isinstance(value, torch.Tensor) and value.ndim and value.shape[0] == samples:
        return value[start:end]
    return value
