"""Keys and values of the whole sequence: a patch renews its own and reads all others stale.

Source: PipeFusion (arXiv 2405.14430), section 4.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch


@dataclass
class KeyCache:
    """The keys and values of every self-attention of this rank's blocks, (B, H, S, D) each.

    Whoever runs the blocks says which `call` of a step and which block (`layer`) is computed.
    Tokens lie patch after patch, so that a patch is one piece; where they lie doesn't matter to
    attention without a mask.
    """

    patches: int
    call: int = 0
    layer: int = 0
    _kept: dict[tuple[int, int, int], tuple[torch.Tensor, torch.Tensor]] = field(
        default_factory=dict
    )
    _orders: dict[tuple[int, int], tuple[torch.Tensor, list[int]]] = field(default_factory=dict)

    def renew(
        self,
        attention: int,
        patch: int | None,
        key: torch.Tensor,
        value: torch.Tensor,
        tokens_of: Callable[[int | None], Sequence[int]],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Takes in fresh keys and values, and gives those to attend to.

        `attention` numbers those of a block. `patch` is whose keys they are, None for the whole
        sequence, which fills the cache. `tokens_of` says for a patch, or for None, which tokens of
        the sequence its keys are, in the order in which they come.
        """
        place = (self.call, self.layer, attention)
        if patch is None:
            if (self.call, attention) not in self._orders:
                self._orders[self.call, attention] = self._order(tokens_of, key.device)
            order, _ = self._orders[self.call, attention]
            if place not in self._kept:
                self._kept[place] = (torch.empty_like(key), torch.empty_like(value))
            for whole, fresh in zip(self._kept[place], (key, value), strict=True):
                # in place: a captured graph goes on reading there
                whole.copy_(fresh.index_select(2, order))
            return key, value
        _, starts = self._orders[self.call, attention]
        start = starts[patch]
        keys, values = self._kept[place]
        for whole, fresh in ((keys, key), (values, value)):
            whole[:, :, start : start + fresh.shape[2]].copy_(fresh)
        return keys, values

    def clear(self) -> None:
        """Forgets all keys and values; whenever batch or lengths become others."""
        self._kept.clear()
        self._orders.clear()

    def _order(
        self, tokens_of: Callable[[int | None], Sequence[int]], device: torch.device
    ) -> tuple[torch.Tensor, list[int]]:
        """Where the whole sequence has the tokens of patch after patch; where each begins."""
        at = {token: place for place, token in enumerate(tokens_of(None))}
        parts = [[at[token] for token in tokens_of(patch)] for patch in range(self.patches)]
        starts = list(accumulate((len(part) for part in parts), initial=0))
        return torch.tensor([place for part in parts for place in part], device=device), starts
