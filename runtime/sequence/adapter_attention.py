"""The attention that an adapter adds to a self-attention: this rank's tokens ask, alone.

IP-Adapter's processors attend a second time, to tokens of a picture that every rank has. FLUX's
asks for those alone, SD3's for all image tokens and then for those.
"""

from dataclasses import dataclass

import torch

from ditplan.profiles.model import AttentionKernel
from ditplan.runtime.collectives import all_gather_uneven
from ditplan.runtime.sequence.kernels import attend
from ditplan.runtime.sequence.layout import Layout


@dataclass(frozen=True)
class AdapterAttention:
    """The answer to it: the keys of `segments` are those of all ranks, the others each has."""

    segments: tuple[str, ...]
    layout: Layout | None
    kernel: AttentionKernel

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None
    ) -> torch.Tensor:
        """(B, H, S of this rank, D), and twice (B, H, S of this rank + all others, D)."""
        if self.segments and self.layout and (group := self.layout.groups.all):
            sizes = self.layout.sizes(self.segments)
            own = sizes[group.index]
            key, value = (
                torch.cat([all_gather_uneven(kv[:, :, :own], 2, sizes, group), kv[:, :, own:]], 2)
                for kv in (key, value)
            )
        return attend(query, key, value, scale, self.kernel)
