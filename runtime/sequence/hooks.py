"""Sequence parallelism on an unmodified transformer, by hooks and an answer to its attention.

The family says where tensors with a sequence dim appear whole, where they are put together again,
and which modules are self-attention. A sequence is an ordered list of segments (image, text), each
split over all ranks, so that a rank holds a share of every segment.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from ditplan.profiles.errors import InputError
from ditplan.profiles.family import Gather, ModelFamily, Split
from ditplan.runtime.collectives import all_gather_uneven
from ditplan.runtime.compilation.operators import AttentionFn
from ditplan.runtime.sequence.block_masks import note_mask_of_blocks
from ditplan.runtime.sequence.interception import Interceptor, intercepted
from ditplan.runtime.sequence.layout import Layout
from ditplan.runtime.sequence.token_counts import SegmentLengths, apply_counts
from ditplan.runtime.takeover import (
    change_arguments,
    inner_forward,
    matching_modules,
    names_arguments,
    replace_forward,
    submodule,
    take_class,
)

NO_ADAPTERS: Mapping[str, AttentionFn] = {}


class SdpaInterceptor(Interceptor):
    """While entered, scaled_dot_product_attention is answered by the module's `_attention_answer`.

    All but the first by what `_attention_adapters` has for its processor, if anything.

    Raises:
        InputError: a mask, causality, dropout or grouped heads that the answer doesn't honour.
    """

    functions = (functional.scaled_dot_product_attention,)
    expected = 1

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        processor = type(getattr(module, "processor", None)).__name__
        self._further: AttentionFn | None = module._attention_adapters.get(processor)

    def counts_right(self) -> bool:
        """As `Interceptor`; a processor with an adapter asks once or more."""
        return super().counts_right() or bool(self.calls and self._further)

    def answer(self, _func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> torch.Tensor:
        """(B, H, Q, D) and (B, H, K, D) twice -> (B, H, Q, D)."""
        return self._distributed(*args, **kwargs)

    def gone_around(self) -> str:
        """As `Interceptor`."""
        return (
            f"{self._module._attention_name} called torch's scaled_dot_product_attention "
            f"{self.calls} times in one forward, once was expected: an attention "
            "backend or processor goes around it, so its sequence can't be split. Use the "
            'default one (`transformer.set_attention_backend("native")`, no '
            "DIFFUSERS_ATTN_BACKEND, no extra attention processors)"
        )

    def _distributed(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        asked = {
            "an attention mask": attn_mask is not None,
            "dropout": dropout_p > 0,
            "a causal mask": is_causal,
            "grouped-query heads": enable_gqa or key.shape[1] != query.shape[1],
        }
        if refused := [what for what, is_asked in asked.items() if is_asked]:
            raise InputError(
                f"{self._module._attention_name} asks for {' and '.join(refused)}, which the "
                "plan's attention doesn't honour; run this model with ring and ulysses of 1 and "
                "attention auto"
            )
        if self.calls > 1 and self._further is not None:
            return self._further(query, key, value, scale)
        answer: AttentionFn = self._module._attention_answer
        return answer(query, key, value, scale)


def answer_attention(
    module: nn.Module,
    name: str,
    answer: AttentionFn,
    undo: ExitStack,
    adapters: Mapping[str, AttentionFn] = NO_ADAPTERS,
) -> None:
    """Has `answer` give the module's self-attention, asked for exactly once in each call.

    Of `adapters` it has the answers to what attention processors, by class name, ask beyond that.

    Raises:
        InputError: the module has a forward of its own, which would go around its class. When it is
            called: scaled_dot_product_attention was not called, or more than once.
    """
    original: Any = type(module)
    take_class(
        module,
        intercepted(original, SdpaInterceptor),
        name,
        undo,
        _attention_answer=answer,
        _attention_name=name,
        _attention_adapters=adapters,
    )


def apply_sequence_parallel(
    model: nn.Module,
    family: ModelFamily,
    layout: Layout,
    answers: Sequence[AttentionFn],
    undo: ExitStack,
    adapters: Mapping[str, AttentionFn] = NO_ADAPTERS,
) -> None:
    """Splits the model's sequence over the layout's ranks; closing `undo` takes that away again.

    `answers` are those to the family's self-attentions, in its order, `adapters` those to its
    adapters.

    Raises:
        InputError: the model has no module that the family names.
    """

    lengths = SegmentLengths()

    def cut(split: Split, tensor: torch.Tensor) -> torch.Tensor:
        lengths.require(split, tensor)
        return layout.share(tensor, split.segment, split.dim)

    apply_splits(model, family, cut, undo)
    lengths.apply(model, undo)
    apply_counts(model, family, layout, undo)
    lift_text_mask(model, family, layout.note_masks, undo)
    for gather in family.gathers:
        undo.callback(_apply_gather(model, gather, layout).remove)
    answer_attentions(model, family, answers, undo, adapters)


def answer_attentions(
    model: nn.Module,
    family: ModelFamily,
    answers: Sequence[AttentionFn],
    undo: ExitStack,
    adapters: Mapping[str, AttentionFn] = NO_ADAPTERS,
) -> None:
    """Has each of the family's self-attentions answered, all modules of one declaration alike.

    Raises:
        InputError: the model has none of them.
    """
    attentions = 0
    for declared, answer in zip(family.self_attentions, answers, strict=True):
        for name, module in matching_modules(model, declared.modules):
            answer_attention(module, name, answer, undo, adapters)
            attentions += 1
    if family.self_attentions and not attentions:
        raise InputError(
            f"{type(model).__name__} has no module that matches "
            f"{' or '.join(a.modules for a in family.self_attentions)}; family {family.name} "
            "doesn't describe it"
        )


def apply_splits(
    model: nn.Module,
    family: ModelFamily,
    cut: Callable[[Split, torch.Tensor], torch.Tensor],
    undo: ExitStack,
) -> None:
    """Has `cut` applied to each tensor at the family's splits; closing `undo` takes that away."""
    for split in family.splits:
        one = functools.partial(cut, split)
        if split.place == "output":
            hook = functools.partial(_cut_output, split, one)
            module = submodule(model, split.name)
            undo.callback(module.register_forward_hook(hook).remove)
        elif split.place in ("entry", "every"):
            blocks = list(submodule(model, split.blocks).children())
            change = functools.partial(_cut_argument, split, one)
            for block in blocks[:1] if split.place == "entry" else blocks:
                change_arguments(block, change, undo)
    inputs = [split for split in family.splits if split.place == "input"]
    whole, named = inner_forward(model), names_arguments(model)

    def forward(*args: Any, **kwargs: Any) -> Any:
        given = named(*args, **kwargs)
        for split in inputs:
            given = _cut_argument(split, functools.partial(cut, split), given)
        return whole(**given)

    replace_forward(model, forward, undo)


def _cut_output(
    split: Split,
    cut: Callable[[torch.Tensor], torch.Tensor],
    _module: nn.Module,
    _args: Any,
    output: Any,
) -> Any:
    return _cut_value(split, cut, output)


def _cut_argument(
    split: Split, cut: Callable[[torch.Tensor], torch.Tensor], given: dict[str, Any]
) -> dict[str, Any]:
    if split.name not in given:
        return given
    return given | {split.name: _cut_value(split, cut, given[split.name])}


def _cut_value(split: Split, cut: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """A split's tensor cut, or each of a list or dict of them, or the one that it names."""
    if isinstance(value, torch.Tensor):
        return cut(value) if split.ndim in (None, value.ndim) else value
    if isinstance(value, dict):
        return {name: _cut_value(split, cut, item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(
            _cut_value(split, cut, item) if split.item in (None, number) else item
            for number, item in enumerate(value)
        )
    return value


def _apply_gather(model: nn.Module, gather: Gather, layout: Layout) -> RemovableHandle:
    def whole(_module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        ranks = layout.groups.all
        if ranks is None:
            return output
        here = [layout.sizes([segment])[layout.groups.index] for segment in gather.segments]
        shares = output.split(here, gather.dim)
        return torch.cat(
            [
                all_gather_uneven(share, gather.dim, layout.sizes([segment]), ranks)
                for share, segment in zip(shares, gather.segments, strict=True)
            ],
            gather.dim,
        )

    return submodule(model, gather.name).register_forward_hook(whole)


def lift_text_mask(
    model: nn.Module,
    family: ModelFamily,
    note: Callable[[dict[str, torch.Tensor]], None],
    undo: ExitStack,
) -> None:
    """Has `note` get the mask of each call's text, by segment, and the blocks none.

    Closing `undo` takes that away again.
    """
    mask = family.text_mask
    if mask is None:
        return
    blocks = [block for path in family.blocks for block in submodule(model, path).children()]
    if mask.input is None:
        note_mask_of_blocks(blocks, mask, note, undo)
        return
    name, segment = mask.input, mask.segment
    whole, named = inner_forward(model), names_arguments(model)

    def forward(*args: Any, **kwargs: Any) -> Any:
        given = named(*args, **kwargs)
        found = given.get(name)
        note({} if found is None else {segment: found.bool()})
        return whole(**given | ({name: None} if mask.handed_on else {}))

    replace_forward(model, forward, undo)
    for block in blocks:
        change_arguments(block, lambda given: given | {mask.argument: None}, undo)
