"""The layers of a VAE that read beyond a rank's rows, and what they do while a picture is split.

All else in these VAEs is of one pixel, or copies rows: what has been split stays split. Found by
the class of the layer, and as before wherever nothing is split.
"""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn

from ditplan.profiles.errors import InputError
from ditplan.runtime.takeover import inner_forward, replace_forward, replaced
from ditplan.runtime.vae.attention import split_attention
from ditplan.runtime.vae.rows import Edge, Halo, Rows, normalized

CAUSAL_WITH_CACHE = ("WanCausalConv3d", "QwenImageCausalConv3d")
"""They pad by `_padding` themselves, and are given the frames before as a second argument."""
CAUSAL_REPLICATE = "HunyuanVideoCausalConv3d"
"""Pads by `time_causal_padding` itself, and has a convolution within."""


def split_layers(part: nn.Module, rows: Rows, undo: ExitStack) -> int:
    """Has an encoder or decoder compute its rows right; closing `undo` takes that away again.

    Gives how many rows of the smallest feature map each rank must have.

    Raises:
        InputError: it has a convolution that can't be split.
    """
    reach, within = 1, set[nn.Module]()
    for name, layer in part.named_modules():
        kind = type(layer).__name__
        if layer in within:
            continue
        if kind == CAUSAL_REPLICATE:
            convolution: Any = layer.conv
            within.add(convolution)
            reach = max(reach, _split_causal_replicate(layer, convolution, rows, undo))
        elif kind in CAUSAL_WITH_CACHE:
            reach = max(reach, _split_causal_with_cache(layer, rows, undo))
        elif isinstance(layer, (nn.Conv2d, nn.Conv3d)):
            reach = max(reach, _split_convolution(name, layer, rows, undo))
        elif isinstance(layer, nn.GroupNorm):
            replace_forward(layer, partial(_group_norm, layer, inner_forward(layer), rows), undo)
        else:
            split_attention(name, layer, rows, undo)
    return reach


def _group_norm(
    norm: nn.GroupNorm, whole: Callable[..., Any], rows: Rows, part: torch.Tensor
) -> Any:
    if not rows.is_split:
        return whole(part)
    mean, variance = rows.moments(part, norm.num_groups)
    return normalized(part, mean, variance, norm)


def _split_convolution(name: str, layer: nn.Conv2d | nn.Conv3d, rows: Rows, undo: ExitStack) -> int:
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros" or layer.dilation[-2] != 1:
        raise InputError(
            f"{name} pads by {layer.padding_mode!r}, {layer.padding}, with dilation "
            f"{layer.dilation}: the rows that it reads beside its own aren't known; use "
            "vae_parallel 1"
        )
    kernel, stride, padding = layer.kernel_size[-2], layer.stride[-2], layer.padding[-2]
    if kernel == 1 and stride == 1:
        return 1
    whole = inner_forward(layer)
    unpadded = (*layer.padding[:-2], 0, layer.padding[-1])
    padded_before = stride > 1 and padding == 0
    halo = _of_kernel(kernel, stride, padding)

    def forward(part: torch.Tensor) -> Any:
        if not rows.is_split:
            return whole(part)
        if padded_before:
            # a row of zeros is there below already, where the next rank's first belongs
            beyond = part.shape[-2] % stride
            part = part[..., : part.shape[-2] - beyond, :]
            reach = Halo(0, halo.below, beyond)
            return whole(*rows.with_halo([part], reach, "zeros"))
        with replaced(layer, "padding", unpadded):
            return whole(*rows.with_halo([part], halo, "zeros"))

    replace_forward(layer, forward, undo)
    return halo.reach


def _split_causal_with_cache(layer: Any, rows: Rows, undo: ExitStack) -> int:
    kernel, padding = layer.kernel_size[-2], layer._padding[2]
    if kernel == 1:
        return 1
    whole = inner_forward(layer)
    unpadded = (*layer._padding[:2], 0, 0, *layer._padding[4:])
    halo = _of_kernel(kernel, layer.stride[-2], padding)

    def forward(part: torch.Tensor, cache_x: torch.Tensor | None = None) -> Any:
        if not rows.is_split:
            return whole(part, cache_x)
        parts = [part] if cache_x is None else [part, cache_x.to(part.device)]
        with replaced(layer, "_padding", unpadded):
            return whole(*rows.with_halo(parts, halo, "zeros"))

    replace_forward(layer, forward, undo)
    return halo.reach


def _split_causal_replicate(layer: Any, convolution: Any, rows: Rows, undo: ExitStack) -> int:
    left, right, top, _, *frames = layer.time_causal_padding
    kernel = convolution.kernel_size[-2]
    if kernel == 1:
        return 1
    if convolution.padding[-2]:
        raise InputError(
            f"a {CAUSAL_REPLICATE} pads twice: the rows that it reads beside its own aren't known; "
            "use vae_parallel 1"
        )
    edge: Edge = "replicate" if layer.pad_mode == "replicate" else "zeros"
    whole = inner_forward(layer)
    halo = _of_kernel(kernel, convolution.stride[-2], top)

    def forward(part: torch.Tensor) -> Any:
        if not rows.is_split:
            return whole(part)
        with replaced(layer, "time_causal_padding", (left, right, 0, 0, *frames)):
            return whole(*rows.with_halo([part], halo, edge))

    replace_forward(layer, forward, undo)
    return halo.reach


def _of_kernel(kernel: int, stride: int, padding: int) -> Halo:
    """Rows beside a rank's own, whose first one is a multiple of the stride."""
    return Halo(padding, max(0, kernel - stride - padding), padding)
