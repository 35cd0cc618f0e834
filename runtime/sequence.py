"""Sequence parallelism on an unmodified transformer, by hooks and one door for attention.

The family says where tensors with a sequence dim appear whole, where they are put together again,
and which modules are self-attention. A sequence is an ordered list of segments (image, text), each
split over all ranks, so that a rank holds a share of every segment.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from ditplan.profiles.errors import InputError
from ditplan.profiles.family import Gather, ModelFamily, SelfAttention, Split
from ditplan.profiles.splits import split_bounds, split_sizes
from ditplan.runtime.attention import attend
from ditplan.runtime.collectives import all_gather_uneven
from ditplan.runtime.groups import AxisGroup
from ditplan.runtime.ring import ring_attention
from ditplan.runtime.ulysses import ulysses_attention

Answer = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float | None], torch.Tensor]


@dataclass(frozen=True)
class SequenceGroups:
    """The groups that split a sequence: all its ranks, and its two axes (None for degree 1)."""

    all: AxisGroup
    ring: AxisGroup | None
    ulysses: AxisGroup | None


@dataclass
class Layout:
    """How long each whole segment of the current call is, as every rank sees from its inputs."""

    groups: SequenceGroups
    lengths: dict[str, int] = field(default_factory=dict)

    def share(self, tensor: torch.Tensor, segment: str, dim: int) -> torch.Tensor:
        """This rank's share of a whole tensor; notes the segment's length.

        Raises:
            InputError: fewer tokens than ranks.
        """
        ranks, length = self.groups.all.size, tensor.shape[dim]
        if length < ranks:
            raise InputError(
                f"{length} {segment} tokens can't be split over {ranks} ranks; use a plan with "
                f"ring x ulysses of at most {length}"
            )
        self.lengths[segment] = length
        start, end = split_bounds(length, ranks, self.groups.all.index)
        return tensor.narrow(dim, start, end - start).contiguous()

    def sizes(self, segments: Sequence[str]) -> list[int]:
        """How many tokens of these segments together each rank holds."""
        ranks = self.groups.all.size
        shares = [split_sizes(self.lengths[segment], ranks) for segment in segments]
        return [sum(share[rank] for share in shares) for rank in range(ranks)]


class AttentionDoor(TorchFunctionMode):
    """While entered, scaled_dot_product_attention is answered by `answer`; counts how often.

    Raises:
        InputError: a mask, causality, dropout or grouped heads that the answer doesn't honour.
    """

    def __init__(self, name: str, answer: Answer) -> None:
        super().__init__()
        self._name = name
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
            return func(*args, **(kwargs or {}))
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
                f"{self._name} asks for {' and '.join(refused)}, which can't be honoured when its "
                "sequence is split; run this model with ring and ulysses of 1"
            )
        return self._answer(query, key, value, scale)


def answer_attention(module: nn.Module, name: str, answer: Answer, undo: ExitStack) -> None:
    """Has `answer` give the module's self-attention, asked for exactly once in each call.

    Raises (when the module is called):
        InputError: scaled_dot_product_attention was not called, or more than once.
    """
    original = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        door = AttentionDoor(name, answer)
        # entered inside the wrapped forward: outside, torch.compile would apply the mode twice
        with door:
            result = original(*args, **kwargs)
        if door.answered != 1:
            raise InputError(
                f"{name} called torch's scaled_dot_product_attention {door.answered} times in one "
                "forward, once was expected: an attention backend or processor goes around it, so "
                "its sequence can't be split. Use the default one "
                '(`transformer.set_attention_backend("native")`, no DIFFUSERS_ATTN_BACKEND, '
                "no extra attention processors)"
            )
        return result

    undo.callback(setattr, module, "forward", original)
    module.forward = forward


def matching_modules(model: nn.Module, pattern: str) -> list[tuple[str, nn.Module]]:
    """The submodules whose path matches a pattern in which `*` stands for one path element."""
    wanted = pattern.split(".")
    found = []
    for name, module in model.named_modules():
        parts = name.split(".")
        if len(parts) == len(wanted) and all(
            w in ("*", p) for w, p in zip(wanted, parts, strict=True)
        ):
            found.append((name, module))
    return found


def apply_sequence_parallel(
    model: nn.Module, family: ModelFamily, groups: SequenceGroups, undo: ExitStack
) -> None:
    """Splits the model's sequence over the groups' ranks; closing `undo` takes that away again.

    Raises:
        InputError: the model has no module that the family names.
    """
    layout = Layout(groups)
    for split in family.splits:
        undo.callback(_apply_split(model, split, layout).remove)
    for gather in family.gathers:
        undo.callback(_apply_gather(model, gather, layout).remove)
    attentions = 0
    for declared in family.self_attentions:
        for name, module in matching_modules(model, declared.modules):
            answer_attention(module, name, _answer(declared, name, layout), undo)
            attentions += 1
    if not attentions:
        raise InputError(
            f"{type(model).__name__} has no module that matches "
            f"{' or '.join(a.modules for a in family.self_attentions)}; family {family.name} "
            "doesn't describe it"
        )


def _apply_split(model: nn.Module, split: Split, layout: Layout) -> RemovableHandle:
    def share(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return layout.share(value, split.segment, split.dim)
        if isinstance(value, (list, tuple)):
            return type(value)(share(item) for item in value)
        return value

    if split.place == "input":
        return model.register_forward_pre_hook(
            lambda _module, args, kwargs: (
                (args, kwargs | {split.name: share(kwargs[split.name])})
                if split.name in kwargs
                else None
            ),
            with_kwargs=True,
        )
    module = submodule(model, split.name)
    return module.register_forward_hook(lambda _module, _args, output: share(output))


def _apply_gather(model: nn.Module, gather: Gather, layout: Layout) -> RemovableHandle:
    def whole(_module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        return all_gather_uneven(
            output, gather.dim, layout.sizes([gather.segment]), layout.groups.all
        )

    return submodule(model, gather.name).register_forward_hook(whole)


def submodule(model: nn.Module, name: str) -> nn.Module:
    """A submodule by its path.

    Raises:
        InputError: there is none.
    """
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise InputError(
            f"{type(model).__name__} has no module {name}; its family doesn't describe this "
            "version of the class"
        ) from None


def _answer(declared: SelfAttention, name: str, layout: Layout) -> Answer:
    """One module's distributed attention: ring outside, ulysses inside (USP, arXiv 2405.07719)."""
    groups = layout.groups

    def answer(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None
    ) -> torch.Tensor:
        sizes = layout.sizes(declared.segments)
        _check_length(query, key, sizes[groups.all.index], name)
        ulysses_degree = groups.ulysses.size if groups.ulysses else 1
        ring_index = groups.all.index // ulysses_degree
        # ranks are numbered ring first, so one ring member's tokens are `ulysses_degree` neighbours
        blocks = [sizes[i : i + ulysses_degree] for i in range(0, len(sizes), ulysses_degree)]

        def local(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            if groups.ring is None:
                return attend(q, k, v, scale)
            return ring_attention(q, k, v, groups.ring, [sum(block) for block in blocks], scale)

        if groups.ulysses is None:
            return local(query, key, value)
        return ulysses_attention(query, key, value, groups.ulysses, blocks[ring_index], local)

    return answer


def _check_length(query: torch.Tensor, key: torch.Tensor, expected: int, name: str) -> None:
    if query.shape[2] != expected or key.shape[2] != expected:
        raise InputError(
            f"{name} attends with {query.shape[2]} queries over {key.shape[2]} keys on this rank, "
            f"its share of the sequence has {expected} tokens; the family doesn't say rightly what "
            "it attends over"
        )
