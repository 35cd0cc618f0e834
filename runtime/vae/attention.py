"""Attention within a VAE while a picture is split by rows: each rank's queries over all keys.

The keys of a VAE's one attention are a small part of its memory, and half of its attentions have
more dimensions a head than kernels with a log-sum-exp do: they are gathered, not passed round.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ditplan.runtime.sequence.interception import Interceptor, intercepted
from ditplan.runtime.sequence.linear_attention import StateSum
from ditplan.runtime.takeover import inner_forward, replace_forward, replaced, take_class
from ditplan.runtime.vae.rows import Rows

ATTENTIONS = ("Attention", "WanAttentionBlock", "QwenImageAttentionBlock")
LINEAR_ATTENTION = "SanaMultiscaleLinearAttention"
CAUSAL_BLOCK = "HunyuanVideoMidBlock3D"
"""Its attention is over the tokens of all frames, with a mask that it makes for its own rows."""


def split_attention(name: str, layer: nn.Module, rows: Rows, undo: ExitStack) -> None:
    """Has an attention see all rows while split; leaves any other layer alone."""
    original: Any = type(layer)
    if original.__name__ in ATTENTIONS:
        take_class(layer, intercepted(original, _GatherKV), name, undo, _rows=rows)
    elif original.__name__ == LINEAR_ATTENTION:
        taken = intercepted(original, StateSum)
        take_class(layer, taken, name, undo, _ask_ranks=rows.summed)
        _always_linear(layer, rows, undo)
    elif original.__name__ == CAUSAL_BLOCK:
        _note_frames(layer, undo)


def _always_linear(layer: Any, rows: Rows, undo: ExitStack) -> None:
    """By the state's sum also where one rank alone has so few tokens that their products are less
    work: both are one formula.
    """
    quadratic = layer.apply_quadratic_attention

    def attend(*args: torch.Tensor) -> torch.Tensor:
        chosen = layer.apply_linear_attention if rows.is_split else quadratic
        result: torch.Tensor = chosen(*args)
        return result.to(args[2].dtype)

    undo.enter_context(replaced(layer, "apply_quadratic_attention", attend))


def _note_frames(block: Any, undo: ExitStack) -> None:
    """Has the attentions of a block know of how many frames their tokens are."""
    whole = inner_forward(block)
    attentions = [layer for layer in block.attentions if layer is not None]

    def forward(part: torch.Tensor) -> Any:
        with ExitStack() as call:
            for attention in attentions:
                call.enter_context(replaced(attention, "_frames", part.shape[2]))
            return whole(part)

    replace_forward(block, forward, undo)


class _GatherKV(Interceptor):
    """While entered, attention is over the keys and values of all ranks."""

    functions = (functional.scaled_dot_product_attention,)
    expected = 1

    def answer(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> torch.Tensor:
        """(B, H, S of this rank, D) thrice -> (B, H, S of this rank, D)."""
        rows: Rows = self._module._rows
        if not rows.is_split:
            whole: torch.Tensor = func(*args, **kwargs)
            return whole
        return self._over_all(rows, func, *args, **kwargs)

    def _over_all(
        self,
        rows: Rows,
        func: Callable[..., torch.Tensor],
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        width = key.shape[-1]
        both = rows.gathered(torch.cat([key, value], -1), 2)
        if attn_mask is not None:
            attn_mask = self._mask(rows, query, attn_mask)
        return func(query, both[..., :width], both[..., width:], attn_mask=attn_mask, **kwargs)

    def _mask(self, rows: Rows, query: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """Which keys are of the query's frame or one before: (S of this rank, S of all)."""
        frames, tokens = self._module._frames, query.shape[2]

        def frame_of_each(tokens: int) -> torch.Tensor:
            return torch.arange(frames, device=query.device).repeat_interleave(tokens // frames)

        of_keys = torch.cat([frame_of_each(size) for size in rows.sizes_like(tokens)])
        later = of_keys[None, :] > frame_of_each(tokens)[:, None]
        return torch.zeros(later.shape, dtype=own.dtype, device=own.device).masked_fill_(
            later, float("-inf")
        )

    def gone_around(self) -> str:
        """As `Interceptor`."""
        return (
            f"the VAE's {type(self._module).__name__} called torch's scaled_dot_product_attention "
            f"{self.calls} times in one forward, once was expected: an attention processor goes "
            "around it, so its picture can't be split by rows; use the default one, or "
            "vae_parallel 1"
        )
