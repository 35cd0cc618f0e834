"""Sequence parallelism on an unmodified transformer, by hooks and one door for attention.

The family says where tensors with a sequence dim appear whole, where they are put together again,
and which modules are self-attention. A sequence is an ordered list of segments (image, text), each
split over all ranks, so that a rank holds a share of every segment.
"""

import functools
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
from ditplan.profiles.model import AttentionKernel
from ditplan.profiles.splits import split_bounds, split_sizes
from ditplan.runtime.attention import attend, attend_with_lse
from ditplan.runtime.collectives import all_gather_uneven
from ditplan.runtime.exchange import Exchange, Work
from ditplan.runtime.groups import AxisGroup
from ditplan.runtime.ring import ring_attention

Answer = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float | None], torch.Tensor]
GatherKeys = Callable[
    [torch.Tensor, torch.Tensor, Sequence[int]], tuple[torch.Tensor, torch.Tensor]
]


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
        # with the usual strides even where a dim is 1 long, as compiled blocks put out: they are
        # compiled anew for others
        share = tensor.narrow(dim, start, end - start)
        return share.clone(memory_format=torch.contiguous_format)

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

    def __init__(self, module: nn.Module, answer: Answer) -> None:
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
        if func is torch.Tensor.unflatten:
            # torch.compile can't trace the method's super() under a mode
            func = torch.unflatten
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
                f"{self._module._attention_name} asks for {' and '.join(refused)}, which the "
                "plan's attention doesn't honour; run this model with ring and ulysses of 1 and "
                "attention auto"
            )
        return self._answer(query, key, value, scale)


def answer_attention(module: nn.Module, name: str, answer: Answer, undo: ExitStack) -> None:
    """Has `answer` give the module's self-attention, asked for exactly once in each call.

    The module gets a subclass of its class, not a forward of its own: so that torch.compile sees
    the same code in all blocks of a kind and compiles it once.

    Raises:
        InputError: the module has a forward of its own, which would go around its class. When it is
            called: scaled_dot_product_attention was not called, or more than once.
    """
    if "forward" in vars(module):
        raise InputError(
            f"the forward of {name} has been replaced (by offloading hooks, for instance), so its "
            "attention can't be answered; put the plan in force before that, or leave it out"
        )
    original = type(module)
    undo.callback(setattr, module, "__class__", original)
    undo.callback(delattr, module, "_attention_name")
    undo.callback(delattr, module, "_attention_answer")
    module._attention_answer = answer  # type: ignore[assignment]
    module._attention_name = name  # type: ignore[assignment]
    module.__class__ = _answered(original)  # type: ignore[arg-type]


@functools.cache
def _answered(original: type[Any]) -> type[Any]:
    """A subclass that enters the door around its forward."""
    # called by this name: not all versions of torch.compile follow super() to it
    inner = original.forward

    class Answered(original):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            # entered inside the wrapped forward: outside, torch.compile would apply the mode twice
            door = AttentionDoor(self, self._attention_answer)
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
    model: nn.Module,
    family: ModelFamily,
    layout: Layout,
    answers: Sequence[Answer],
    undo: ExitStack,
) -> None:
    """Splits the model's sequence over the layout's ranks; closing `undo` takes that away again.

    `answers` are those to the family's self-attentions, in its order.

    Raises:
        InputError: the model has no module that the family names.
    """
    for split in family.splits:
        cut = functools.partial(layout.share, segment=split.segment, dim=split.dim)
        undo.callback(apply_split(model, split, cut).remove)
    for gather in family.gathers:
        undo.callback(_apply_gather(model, gather, layout).remove)
    answer_attentions(model, family, answers, undo)


def answer_attentions(
    model: nn.Module, family: ModelFamily, answers: Sequence[Answer], undo: ExitStack
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
    if not attentions:
        raise InputError(
            f"{type(model).__name__} has no module that matches "
            f"{' or '.join(a.modules for a in family.self_attentions)}; family {family.name} "
            "doesn't describe it"
        )


def apply_split(
    model: nn.Module, split: Split, cut: Callable[[torch.Tensor], torch.Tensor]
) -> RemovableHandle:
    """Has `cut` applied to each tensor at the split's place."""

    def each(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return cut(value)
        if isinstance(value, (list, tuple)):
            return type(value)(each(item) for item in value)
        return value

    if split.place == "input":
        return model.register_forward_pre_hook(
            lambda _module, args, kwargs: (
                (args, kwargs | {split.name: each(kwargs[split.name])})
                if split.name in kwargs
                else None
            ),
            with_kwargs=True,
        )
    module = submodule(model, split.name)
    return module.register_forward_hook(lambda _module, _args, output: each(output))


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


@dataclass(frozen=True)
class SequenceAttention:
    """The distributed answer to one declared self-attention: ring outside, ulysses inside.

    Source: USP (arXiv 2405.07719).
    """

    declared: SelfAttention
    layout: Layout
    kernel: AttentionKernel
    exchange: Exchange | None
    gather_keys: GatherKeys | None

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
        sizes = self.layout.sizes(self.declared.segments)
        self._check_length(query, key, sizes[self.layout.groups.all.index])
        if self.exchange is not None:
            query, key, value = self.exchange.gather_tokens(
                (query, key, value), self._blocks()[self._ring_index()], meanwhile
            )
        key_sizes = [sum(block) for block in self._blocks()]
        return self._over_ring(query, key, value, key_sizes, scale)

    def by_tokens(
        self, attended: torch.Tensor, heads: int, meanwhile: Work | None = None
    ) -> torch.Tensor:
        """The second half, `heads` in all, with an exchange: -> (B, H, S of this rank, D).

        It has the strides of (B, S, H, D). With `meanwhile` it is valid until the next exchange.
        """
        if self.exchange is None:
            return attended
        tokens = self._blocks()[self._ring_index()]
        return self.exchange.scatter_tokens(attended, heads, tokens, meanwhile)

    def _ring_index(self) -> int:
        return self.layout.groups.all.index // self._ulysses_degree()

    def _ulysses_degree(self) -> int:
        ulysses = self.layout.groups.ulysses
        return ulysses.size if ulysses else 1

    def _blocks(self) -> list[list[int]]:
        """Tokens of each rank, by ring member: ranks are numbered ring first."""
        sizes, degree = self.layout.sizes(self.declared.segments), self._ulysses_degree()
        return [sizes[i : i + degree] for i in range(0, len(sizes), degree)]

    def _over_ring(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_sizes: Sequence[int],
        scale: float | None,
    ) -> torch.Tensor:
        ring = self.layout.groups.ring
        if ring is None:
            return attend(query, key, value, scale, self.kernel)
        if self.gather_keys is not None:
            keys, values = self.gather_keys(key, value, key_sizes)
            return attend(query, keys, values, scale, self.kernel)

        def block(
            q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            return attend_with_lse(q, k, v, scale, self.kernel)

        return ring_attention(query, key, value, ring, key_sizes, block)

    def _check_length(self, query: torch.Tensor, key: torch.Tensor, expected: int) -> None:
        if query.shape[2] != expected or key.shape[2] != expected:
            raise InputError(
                f"{self.declared.modules} attends with {query.shape[2]} queries over "
                f"{key.shape[2]} keys on this rank, its share of the sequence has {expected} "
                "tokens; the family doesn't say rightly what it attends over"
            )
