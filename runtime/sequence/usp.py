"""The distributed answer to a self-attention: ring outside, ulysses inside, over stale keys or not.

Source: USP (arXiv 2405.07719); Ulysses is that of Jacobs et al., DeepSpeed-Ulysses (arXiv
2309.14509). Any numbers of tokens and heads: what doesn't divide becomes split sizes, not padding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ditplan.profiles.errors import InputError
from ditplan.profiles.family import SelfAttention
from ditplan.profiles.model import AttentionKernel
from ditplan.runtime.groups import Work
from ditplan.runtime.sequence.kernels import attend, attend_with_lse
from ditplan.runtime.sequence.layout import Layout
from ditplan.runtime.sequence.masked_attention import masked_attention
from ditplan.runtime.sequence.ring import RingBuffers, RingTransfer, ring_attention
from ditplan.runtime.sequence.stale_kv import StaleKVCache
from ditplan.runtime.sequence.ulysses import Exchange

GatherKV = Callable[[torch.Tensor, torch.Tensor, Sequence[int]], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class SequenceAttention:
    """The distributed answer to one declared self-attention: ring outside, ulysses inside.

    With `gather_kv` a ring's keys and values are gathered in each call, with `gather_masked` in
    those that have a mask. Source: USP (arXiv 2405.07719).
    """

    declared: SelfAttention
    layout: Layout
    kernel: AttentionKernel
    exchange: Exchange | None
    gather_kv: GatherKV | None
    buffers: RingBuffers
    cache: StaleKVCache | None = None
    number: int = 0
    transfer: type[RingTransfer] = RingTransfer
    gather_masked: GatherKV | None = None

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None
    ) -> torch.Tensor:
        """(B, H, S of this rank, D) each -> (B, H, S of this rank, D).

        Raises:
            InputError: the tensors aren't as long as this rank's share.
        """
        attended = self.by_heads(query, key, value, scale)
        return attended if self.exchange is None else self.by_tokens(attended, query.shape[1])

    def by_heads(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float | None,
        meanwhile: Work | None = None,
    ) -> torch.Tensor:
        """The first half: -> (B, H of this rank, S of the ulysses group, D).

        Which rank has which heads, and in what order the tokens stand, is the exchange's: attention
        without a mask minds neither.

        Raises:
            InputError: the tensors aren't as long as this rank's share.
        """
        blocks, (ring, ulysses) = self._blocks(), self._coordinates()
        self._check_length(query, key, blocks[ring][ulysses])
        if self.exchange is not None:
            tensors = (query, key, value)
            query, key, value = self.exchange.gather_tokens(tensors, blocks[ring], meanwhile)
        key_sizes = [sum(block) for block in blocks]
        return self._over_keys(query, key, value, key_sizes, scale)

    def by_tokens(
        self, attended: torch.Tensor, heads: int, meanwhile: Work | None = None
    ) -> torch.Tensor:
        """The second half, `heads` in all, with an exchange: -> (B, H, S of this rank, D).

        It has the strides of (B, S, H, D). With `meanwhile` it is valid until the next exchange.
        """
        if self.exchange is None:
            return attended
        tokens = self._blocks()[self._coordinates()[0]]
        return self.exchange.scatter_tokens(attended, heads, tokens, meanwhile)

    def _coordinates(self) -> tuple[int, int]:
        """This rank's place in the ring and in its ulysses group."""
        return divmod(self.layout.groups.index, self.layout.groups.ulysses_size)

    def _blocks(self) -> list[list[int]]:
        """Tokens of each rank, by ring member: ranks are numbered ring first."""
        sizes = self.layout.sizes(self.declared.segments)
        degree = self.layout.groups.ulysses_size
        return [sizes[i : i + degree] for i in range(0, len(sizes), degree)]

    def _over_keys(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_sizes: Sequence[int],
        scale: float | None,
    ) -> torch.Tensor:
        """Attention over the keys of all members of the ring, who have `key_sizes` of them."""
        ring, visiting = self.layout.groups.ring, self.layout.visiting
        gather_kv = self.gather_kv or (self.gather_masked if self.layout.masks else None)
        if ring is None or gather_kv is not None:
            if gather_kv is not None:
                key, value = gather_kv(key, value, key_sizes)
            if self.cache is not None:
                key, value = self.cache.renew(visiting, self.number, key, value, self._tokens_of)
            arrivals = self.layout.groups.arrivals
            mask = self.layout.mask(self.declared.segments, arrivals)
            if mask is None:
                return attend(query, key, value, scale, self.kernel)
            ranges = [(0, key.shape[2])]
            if visiting.patch is None:
                ranges = self.layout.masked_ranges(self.declared.segments, arrivals)
            return masked_attention(query, key, value, scale, self.kernel, mask, ranges)

        def block(
            q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            return attend_with_lse(q, k, v, scale, self.kernel)

        transfer = self.transfer(ring, self.buffers, key_sizes, keeps_all=self.cache is not None)
        own = transfer.begin(key, value)
        if self.cache is None:
            return ring_attention(query, [own], transfer, block)
        stale = self.cache.others(visiting, self.number)
        attended = ring_attention(query, [*stale, own], transfer, block)
        self.cache.renew(visiting, self.number, *transfer.gathered(), self._tokens_of)
        return attended

    def _tokens_of(self, patch: int | None) -> list[int]:
        """Which tokens of the sequence the gathered keys of a patch are, in their order."""
        return self.layout.tokens(self.declared.segments, patch, self.layout.groups.arrivals)

    def _check_length(self, query: torch.Tensor, key: torch.Tensor, expected: int) -> None:
        if query.shape[2] != expected or key.shape[2] != expected:
            raise InputError(
                f"{self.declared.modules} attends with {query.shape[2]} queries over "
                f"{key.shape[2]} keys on this rank, its share of the sequence has {expected} "
                "tokens; the family doesn't say rightly what it attends over"
            )
