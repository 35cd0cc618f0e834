"""Where the tokens of a patch are in a model's prediction, as the model itself puts them there."""

from collections.abc import Callable, Hashable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from ditplan.profiles.errors import InputError
from ditplan.profiles.family import Gather, ModelFamily
from ditplan.profiles.splits import patch_bounds
from ditplan.runtime.sequence.layout import Layout, Patches
from ditplan.runtime.takeover import sample_of, signature_of, submodule


@dataclass(frozen=True)
class Located:
    """Which numbers of a prediction are of which patch.

    `numbers` are patches' numbers in place of a prediction's, of its shape with batch 1, and `own`
    the places of each patch in a prediction of one sample that is flattened. `dtype` is that of
    predictions. Calls with the same `lengths` have keys and predictions of the same shapes.
    """

    numbers: torch.Tensor
    own: tuple[torch.Tensor, ...]
    dtype: torch.dtype
    lengths: Hashable

    def empty(self, batch: int) -> torch.Tensor:
        """Memory for a prediction."""
        shape = (batch, *self.numbers.shape[1:])
        return torch.empty(shape, dtype=self.dtype, device=self.numbers.device)

    def taken(self, prediction: torch.Tensor, patch: int) -> torch.Tensor:
        """(B, ...) -> (B, numbers of the patch): a patch's own."""
        return prediction.flatten(1).index_select(1, self.own[patch])

    def put(self, prediction: torch.Tensor, patch: int, own: torch.Tensor) -> None:
        """Writes what `taken` gave into another prediction, which is contiguous."""
        prediction.view(prediction.shape[0], -1).index_copy_(1, self.own[patch], own)


class TokenLocator:
    """Asks a model's own way from tokens to predictions, with patches' numbers in place of tokens.

    Once it is applied, the model puts the tokens of a patch where it has them in the whole.
    """

    def __init__(self, model: nn.Module, family: ModelFamily, layout: Layout, patches: int) -> None:
        """`layout` has patches, whose bounds are set when tokens are located."""
        self._model, self._family, self._layout, self._count = model, family, layout, patches
        self._known: tuple[Hashable, Located] | None = None

    def apply(self, undo: ExitStack) -> None:
        """To be applied when sequences are gathered; closing `undo` takes that away again.

        Raises:
            InputError: the model has no module that the family names.
        """
        # where modules were exchanged meanwhile, predictions may lie otherwise
        self._known = None
        for gather in self._family.gathers:
            module = submodule(self._model, gather.name)
            undo.callback(module.register_forward_hook(partial(self._in_whole, gather)).remove)

    def locate(
        self, inputs: dict[str, Any], pass_through: Callable[[dict[str, Any]], Any]
    ) -> Located:
        """Where the patches are in predictions of a call; `pass_through` is the model's forward,
        in which blocks need not compute anything.

        Once for calls that are alike, as the device is waited for.

        Raises:
            InputError: there are fewer tokens than patches, or than ranks in a patch.
        """
        signature = signature_of(inputs)
        if self._known is None or self._known[0] != signature:
            self._known = signature, self._located(inputs, pass_through)
        return self._known[1]

    def _located(
        self, inputs: dict[str, Any], pass_through: Callable[[dict[str, Any]], Any]
    ) -> Located:
        name = self._family.projection or self._family.gathers[0].name
        hook = submodule(self._model, name).register_forward_hook(self._numbered)
        try:
            output = sample_of(pass_through(inputs))
        finally:
            hook.remove()
        numbers: torch.Tensor = output[:1].contiguous()
        flat = numbers.flatten()
        return Located(
            numbers,
            tuple((flat == patch).nonzero().flatten() for patch in range(self._count)),
            output.dtype,
            (tuple(self._layout.lengths.items()), output.shape),
        )

    def _numbered(self, _module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        """Each image token's patch in place of the prediction (B, tokens, C)."""
        patches, lengths, ranks = self._patches, self._layout.lengths, self._layout.groups.size
        try:
            patches.bounds = patch_bounds(
                lengths[patches.segment], lengths.get("text", 0), self._count
            )
        except ValueError as error:
            raise InputError(f"{error}; use a plan with fewer patches") from error
        sizes = [end - start for start, end in patches.bounds]
        if min(sizes) < ranks:
            raise InputError(
                f"a patch of {min(sizes)} tokens can't be split over {ranks} ranks; use a plan "
                f"with ring x ulysses of at most {min(sizes)} or with fewer patches than "
                f"{self._count}"
            )
        numbers = torch.arange(self._count, device=output.device, dtype=output.dtype)
        numbers = numbers.repeat_interleave(torch.tensor(sizes, device=output.device))
        return numbers[None, :, None].expand_as(output)

    def _in_whole(
        self, gather: Gather, _module: nn.Module, _args: Any, output: torch.Tensor
    ) -> torch.Tensor:
        """A patch's tokens at their place in a sequence that has nothing else."""
        patch, layout = self._layout.patch, self._layout
        if patch is None:
            return output
        shape = list(output.shape)
        shape[gather.dim] = sum(layout.lengths[segment] for segment in gather.segments)
        sequence = output.new_zeros(shape)
        before = taken = 0
        for segment in gather.segments:
            start, end = layout.range_of(segment, patch)
            own = output.narrow(gather.dim, taken, end - start)
            sequence.narrow(gather.dim, before + start, end - start).copy_(own)
            before, taken = before + layout.lengths[segment], taken + end - start
        return sequence

    @property
    def _patches(self) -> Patches:
        patches = self._layout.patches
        assert patches is not None
        return patches
