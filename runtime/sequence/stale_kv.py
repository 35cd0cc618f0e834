"""Keys and values of the whole sequence: a patch renews its own and reads all others stale.

Source: PipeFusion (arXiv 2405.14430), section 4.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch

from ditplan.runtime.sequence.layout import FILLER, Visiting


@dataclass
class StaleKVCache:
    """The keys and values of every self-attention of this rank's blocks, (B, H, S, D) each.

    Tokens lie patch after patch, so that a patch is one piece; where they lie doesn't matter to
    attention without a mask.
    """

    patches: int
    _kept: dict[tuple[int, int, int], tuple[torch.Tensor, torch.Tensor]] = field(
        default_factory=dict
    )
    _orders: dict[tuple[int, int], "_Order"] = field(default_factory=dict)

    def renew(
        self,
        visiting: Visiting,
        attention: int,
        key: torch.Tensor,
        value: torch.Tensor,
        tokens_of: Callable[[int | None], Sequence[int]],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Takes in fresh keys and values, and gives those to attend to.

        `attention` numbers those of a block. `visiting` says whose keys they are; those of the
        whole sequence fill the cache. `tokens_of` says for a patch, or for None, which tokens of
        the sequence its keys are, in the order in which they come; `FILLER` are not kept.
        """
        place = (visiting.call, visiting.layer, attention)
        of_call = (visiting.call, attention)
        if visiting.patch is None:
            if of_call not in self._orders:
                self._orders[of_call] = self._order(tokens_of, key.device)
            by_patches = self._orders[of_call].whole
            if place not in self._kept:
                self._kept[place] = (torch.empty_like(key), torch.empty_like(value))
            for whole, fresh in zip(self._kept[place], (key, value), strict=True):
                # in place: a captured graph goes on reading there
                whole.copy_(fresh.index_select(2, by_patches))
            return key, value
        order = self._orders[of_call]
        start, counting = order.starts[visiting.patch], order.counting[visiting.patch]
        keys, values = self._kept[place]
        for whole, fresh in ((keys, key), (values, value)):
            own = fresh if counting is None else fresh.index_select(2, counting)
            whole[:, :, start : start + own.shape[2]].copy_(own)
        return keys, values

    def others(self, visiting: Visiting, attention: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The keys and values of the patches before this one and of those after it, where there
        are any; none beside the whole sequence.
        """
        patch = visiting.patch
        if patch is None:
            return []
        starts = self._orders[visiting.call, attention].starts
        keys, values = self._kept[visiting.call, visiting.layer, attention]
        ranges = [(0, starts[patch]), (starts[patch + 1], starts[-1])]
        return [
            (keys[:, :, start:end], values[:, :, start:end]) for start, end in ranges if end > start
        ]

    def forget(self, call: int) -> None:
        """Forgets the keys and values of a call; when its lengths become others."""
        self._kept = {key: kept for key, kept in self._kept.items() if key[0] != call}
        self._orders = {key: order for key, order in self._orders.items() if key[0] != call}

    def clear(self) -> None:
        """Forgets all keys and values; whenever batch or lengths become others."""
        self._kept.clear()
        self._orders.clear()

    def _order(
        self, tokens_of: Callable[[int | None], Sequence[int]], device: torch.device
    ) -> "_Order":
        at = {token: place for place, token in enumerate(tokens_of(None))}
        coming = [tokens_of(patch) for patch in range(self.patches)]
        parts = [[at[token] for token in tokens if token != FILLER] for tokens in coming]
        return _Order(
            whole=torch.tensor([place for part in parts for place in part], device=device),
            starts=list(accumulate((len(part) for part in parts), initial=0)),
            counting=[_counting(tokens, device) for tokens in coming],
        )


def _counting(tokens: Sequence[int], device: torch.device) -> torch.Tensor | None:
    """The places of those that aren't filler; None if none is."""
    if FILLER not in tokens:
        return None
    places = [place for place, token in enumerate(tokens) if token != FILLER]
    return torch.tensor(places, device=device)


@dataclass(frozen=True)
class _Order:
    """Where the whole sequence has the tokens of patch after patch, where each patch begins, and
    which of the tokens that come with it count, None for all.
    """

    whole: torch.Tensor
    starts: list[int]
    counting: list[torch.Tensor | None]
