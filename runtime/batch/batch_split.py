"""CFG and data parallelism: each rank takes a share of a call's samples, pictures times passes.

The split is made at the transformer's arguments and undone at its output, so that guidance is the
pipeline's own.
"""

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn

from ditplan.profiles.errors import PlanWarning
from ditplan.profiles.family import ModelFamily
from ditplan.profiles.splits import split_bounds, split_sizes
from ditplan.runtime.collectives import all_gather_uneven
from ditplan.runtime.groups import AxisGroup
from ditplan.runtime.takeover import inner_forward, names_arguments, replace_forward


class BatchSplit:
    """Splits a call's samples over the ranks of a group; None for no group keeps them whole."""

    def __init__(self, family: ModelFamily, group: AxisGroup | None) -> None:
        self._family, self._group = family, group

    def share(self, given: dict[str, Any]) -> tuple[dict[str, Any], int | None]:
        """A call's arguments for this rank's samples, and of how many they are a share.

        None where there are fewer samples than ranks (skip-layer guidance's third pass): each rank
        then runs the call whole, with a warning.
        """
        if self._group is None:
            return given, None
        samples, ranks = len(given[self._family.batched_inputs[0]]), self._group.size
        if samples < ranks:
            warnings.warn(
                f"a call with {samples} sample(s) can't be split over {ranks} ranks of dp x cfg: "
                "each runs it whole",
                PlanWarning,
                stacklevel=2,
            )
            return given, None
        start, end = split_bounds(samples, ranks, self._group.index)
        shared = dict(given)
        for name in self._family.batched_inputs:
            by_sample = name in self._family.inputs_by_sample
            share = partial(_share, samples=samples, start=start, end=end, by_sample=by_sample)
            _change(shared, name, share)
        return shared, samples

    def gather(self, output: Any, samples: int | None) -> Any:
        """All samples of an output of which this rank has computed its share."""
        if self._group is None or samples is None:
            return output
        if isinstance(output, list):
            return list(self.gather(torch.stack(output), samples))
        return all_gather_uneven(output, 0, split_sizes(samples, self._group.size), self._group)


def apply_cfg(model: nn.Module, family: ModelFamily, group: AxisGroup, undo: ExitStack) -> None:
    """Splits the batch of each call over the group; closing `undo` takes that away again."""
    split, whole, named = BatchSplit(family, group), inner_forward(model), names_arguments(model)

    def forward(*args: Any, **kwargs: Any) -> Any:
        given, samples = split.share(named(*args, **kwargs))
        output = whole(**given)
        if isinstance(output, tuple):
            return (split.gather(output[0], samples), *output[1:])
        return type(output)(sample=split.gather(output.sample, samples))

    replace_forward(model, forward, undo)


def _change(given: dict[str, Any], name: str, change: Callable[[Any], Any]) -> None:
    """Changes an argument that is given, or the item of a dict: `a.b` is item b of a."""
    owner, _, item = name.partition(".")
    if given.get(owner) is None:
        return
    if not item:
        given[owner] = change(given[owner])
    elif given[owner].get(item) is not None:
        given[owner] = given[owner] | {item: change(given[owner][item])}


def _share(value: Any, samples: int, start: int, end: int, by_sample: bool) -> Any:
    """This rank's samples of a batched argument; what has no full batch dim is for all alike.

    With `by_sample` it is a list with an entry for each.
    """
    if by_sample:
        return value[start:end] if len(value) == samples else value
    share = partial(_share, samples=samples, start=start, end=end, by_sample=False)
    if isinstance(value, dict):
        return {name: share(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(share, value))
    if isinstance(value, torch.Tensor) and value.ndim and value.shape[0] == samples:
        return value[start:end]
    return value
