"""A VAE's own tiles over ranks: what one device makes of them, bit for bit.

diffusers cuts tiles, computes them one after another and blends them, all in one method. It is run
twice: first each rank computes the tiles that are its own, and what is blended is thrown away; then
the tiles of all ranks are in their place.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from ditplan.runtime.groups import AxisGroup
from ditplan.runtime.takeover import replaced

METHODS = ("tiled_decode", "tiled_encode", "_tiled_encode")

GivenAll = Callable[[torch.Tensor | None, int, torch.Tensor], torch.Tensor]
"""Gives all ranks what the one of that number has."""


class SharedTiles:
    """Whose tiles are computed where, while a VAE's method for tiles runs.

    The calls that belong to a tile follow each other: frames after the first are given what was
    kept of those before.
    """

    def __init__(
        self,
        everyone: AxisGroup,
        degree: int,
        given_all: GivenAll,
        is_shared: Callable[[], bool],
    ) -> None:
        self._everyone, self._degree, self._given_all = everyone, degree, given_all
        self._is_shared = is_shared
        self._number = -1
        self._computed: list[tuple[int, torch.Tensor | None]] = []
        self._all: list[torch.Tensor] | None = None
        self.are_cut = False

    def apply(self, vae: Any, undo: ExitStack) -> None:
        """Takes the VAE's methods for tiles over; closing `undo` gives them back."""
        for name in METHODS:
            own: Any = getattr(vae, name, None)
            if own is not None:
                undo.enter_context(replaced(vae, name, self._taken(own)))

    def _taken(self, own: Callable[..., Any]) -> Callable[..., Any]:
        def tiled(picture: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            wants_gradients = torch.is_grad_enabled() and picture.requires_grad
            if self.are_cut or wants_gradients or not self._is_shared():
                return own(picture, *args, **kwargs)
            with ExitStack() as call:
                call.callback(self._forget)
                self.are_cut = True
                own(picture, *args, **kwargs)
                tiles = [self._given_all(tile, owner, picture) for owner, tile in self._computed]
                self._all = tiles[::-1]
                return own(picture, *args, **kwargs)

        return tiled

    def _forget(self) -> None:
        self.are_cut, self._number, self._all = False, -1, None
        self._computed.clear()

    def of_call(
        self,
        part: Any,
        computed: Callable[[torch.Tensor], Any],
        sample: torch.Tensor,
        given: dict[str, Any],
    ) -> tuple[torch.Tensor, Any]:
        """What an encoder or decoder gives for a tile, or for some frames of one, and what it keeps
        of them for the next ones, where it returns that.
        """
        if self._all is not None:
            return self._all.pop(), {}
        if _begins_tile(given):
            self._number += 1
        owner, tile, kept = self._number % self._degree, None, {}
        if owner == self._everyone.index:
            output = computed(sample)
            tile, kept = output if isinstance(output, tuple) else (output, {})
        elif given.get("feat_cache"):
            given["feat_cache"][0] = "another rank's"
        self._computed.append((owner, tile))
        return sample.new_zeros(sample.shape[0], _channels_out(part), *sample.shape[2:]), kept


def _begins_tile(given: dict[str, Any]) -> bool:
    """Whether nothing is kept of frames before."""
    kept = given.get("feat_cache")
    return given.get("conv_cache") is None and not (kept and any(one is not None for one in kept))


def _channels_out(part: nn.Module) -> int:
    last: Any = part.conv_out
    channels: int = getattr(last, "conv", last).out_channels
    return channels
