"""Sequence parallelism on an unmodified transformer, by hooks and one door for attention.

The family says where tensors with a sequence dim appear whole, where they are put together again,
and which modules are self-attention. A sequence is an ordered list of segments (image, text), each
split over all ranks, so that a rank holds a share of every segment.
"""

import functools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from ditplan.profiles.errors import InputError
from ditplan.profiles.family import Gather, ModelFamily, Split
from ditplan.runtime.collectives import all_gather_uneven
from ditplan.runtime.sequence.block_masks import note_mask_of_blocks
from ditplan.runtime.sequence.layout import Layout
from ditplan.runtime.takeover import (
    change_arguments,
    inner_forward,
    matching_modules,
    names_arguments,
    replace_forward,
    submodule,
    take_class,
    traceable,
)

AttentionFn = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float | None], torch.Tensor]


class SdpaInterceptor(TorchFunctionMode):
    """While entered, scaled_dot_product_attention is answered by `answer`; counts how often.

    Raises:
        InputError: a mask, causality, dropout or grouped heads that the answer doesn't honour.
    """

    def __init__(self, module: nn.Module, answer: AttentionFn) -> None:
        super().__init__()
        # not its name: torch.compile would compile each block anew for its own
        self._module = module
        self._answer = answer
        self.answered = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is not functional.scaled_dot_product_attention:
            return traceable(func)(*args, **(kwargs or {}))
        self.answered += 1
        return self._distributed(*args, **(kwargs or {}))

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
        return self._answer(query, key, value, scale)


def answer_attention(module: nn.Module, name: str, answer: AttentionFn, undo: ExitStack) -> None:
    """Has `answer` give the module's self-attention, asked for exactly once in each call.

    Raises:
        InputError: the module has a forward of its own, which would go around its class. When it is
            called: scaled_dot_product_attention was not called, or more than once.
    """
    original: Any = type(module)
    take_class(
        module,
        _answered(original),
        name,
        undo,
        _attention_answer=answer,
        _attention_name=name,
    )


@functools.cache
def _answered(original: type[Any]) -> type[Any]:
    """A subclass that enters the door around its forward."""
    # called by this name: not all versions of torch.compile follow super() to it
    inner = original.forward

    class Answered(original):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            # entered inside the wrapped forward: outside, torch.compile would apply the mode twice
            door = SdpaInterceptor(self, self._attention_answer)
            with door:
                result = inner(self, *args, **kwargs)
            if door.answered != 1:
                raise InputError(
                    f"{self._attention_name} called torch's scaled_dot_product_attention "
                    f"{door.answered} times in one forward, once was expected: an attention "
                    "backend or processor goes around it, so its sequence can't be split. Use the "
                    'default one (`transformer.set_attention_backend("native")`, no '
                    "DIFFUSERS_ATTN_BACKEND, no extra attention processors)"
                )
            return result

    Answered.__name__, Answered.__qualname__ = original.__name__, original.__qualname__
    return Answered


def apply_sequence_parallel(
    model: nn.Module,
    family: ModelFamily,
    layout: Layout,
    answers: Sequence[AttentionFn],
    undo: ExitStack,
) -> None:
    """Splits the model's sequence over the layout's ranks; closing `undo` takes that away again.

    `answers` are those to the family's self-attentions, in its order.

    Raises:
        InputError: the model has no module that the family names.
    """

    def cut(split: Split, tensor: torch.Tensor) -> torch.Tensor:
        return layout.share(tensor, split.segment, split.dim)

    apply_splits(model, family, cut, undo)
    lift_text_mask(model, family, layout.note_masks, undo)
    for gather in family.gathers:
        undo.callback(_apply_gather(model, gather, layout).remove)
    answer_attentions(model, family, answers, undo)


def answer_attentions(
    model: nn.Module, family: ModelFamily, answers: Sequence[AttentionFn], undo: ExitStack
) -> None:
    """Has each of the family's self-attentions answered, all modules of one declaration alike.

    Raises:
        InputError: the model has none of them.
    """
    attentions = 0
    for declared, answer in zip(family.self_attentions, answers, strict=True):
        for name, module in matching_modules(model, declared.modules):
            answer_attention(module, name, answer, undo)
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
    """A split's tensor cut, or each of a list of them, or the one of the list that it names."""
    if isinstance(value, torch.Tensor):
        return cut(value) if split.ndim in (None, value.ndim) else value
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
        return whole(**given)

    replace_forward(model, forward, undo)
    for block in blocks:
        change_arguments(block, lambda given: given | {mask.argument: None}, undo)
