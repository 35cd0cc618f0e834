"""Self-attention as on one rank of many, for measuring it on one device."""

import torch

from ditplan.profiles.family import SelfAttention
from ditplan.profiles.model import AttentionKernel, PointRequest
from ditplan.runtime.sequence.kernels import attend


class SyntheticKV:
    """The answer to one declared self-attention as one rank would give it, over random keys."""

    def __init__(self, declared: SelfAttention) -> None:
        self._declared = declared
        self._wanted = 0
        self._made: torch.Tensor | None = None
        self._last: tuple[torch.Tensor, torch.Tensor, torch.Tensor, float | None] | None = None
        self.kernel: AttentionKernel = "auto"

    def begin(self, request: PointRequest) -> None:
        """Says of which rank's share the following calls will be."""
        shares = {"image": request.image_share, "text": request.text_share}
        own = sum(shares[segment] for segment in self._declared.segments)
        self._wanted = round(own * request.key_share)
        self._made, self._last, self.kernel = None, None, "auto"

    @property
    def size(self) -> int:
        """Query-key pairs of the last call; 0 if this attention wasn't asked."""
        return self._last[0].shape[2] * self._last[1].shape[2] if self._last else 0

    @property
    def head_dim(self) -> int:
        """Of the last call."""
        return self._last[0].shape[-1] if self._last else 0

    def again(self) -> torch.Tensor:
        """Repeats the last call.

        Raises:
            RuntimeError: there was none.
        """
        if self._last is None:
            raise RuntimeError(f"{self._declared.modules} was not asked")
        query, key, value, scale = self._last
        return attend(query, key, value, scale, self.kernel)

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None
    ) -> torch.Tensor:
        """(B, H, Q, D) and whatever keys -> (B, H, Q, D)."""
        if self._wanted != key.shape[2]:
            shape = (*key.shape[:2], self._wanted, key.shape[3])
            if self._made is None or self._made.shape != shape:
                self._made = torch.randn(shape, device=key.device, dtype=key.dtype)
            key = value = self._made
        self._last = (query, key, value, scale)
        return attend(query, key, value, scale, self.kernel)
