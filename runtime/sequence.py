"""Sequence parallelism on an unmodified transformer, by hooks and one door for attention.

The family says where tensors with a sequence dim appear whole, where they are put together again,
and which modules are self-attention. A sequence is an ordered list of segments (image, text), each
split over all ranks, so that a rank holds a share of every segment.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
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
from ditplan.profiles.splits import split_bounds
from ditplan.runtime.attention import attend, attend_with_lse
from ditplan.runtime.collectives import all_gather_uneven
from ditplan.runtime.exchange import Exchange, Work
from ditplan.runtime.groups import AxisGroup
from ditplan.runtime.modules import replace_forward
from ditplan.runtime.ring import ring_attention
from ditplan.runtime.stale import KeyCache

Answer = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float | None], torch.Tensor]
GatherKeys = Callable[
    [torch.Tensor, torch.Tensor, Sequence[int]], tuple[torch.Tensor, torch.Tensor]
]


@dataclass(frozen=True)
class SequenceGroups:
    """The groups that split a sequence: all its ranks, and its two axes (None for degree 1)."""

    all: AxisGroup | None
    ring: AxisGroup | None
    ulysses: AxisGroup | None

    @property
    def size(self) -> int:
        """How many ranks share a sequence."""
        return self.all.size if self.all else 1

    @property
    def index(self) -> int:
        """This rank's place among them: ring first."""
        return self.all.index if self.all else 0

    @property
    def ulysses_size(self) -> int:
        """How many ranks share the heads."""
        return self.ulysses.size if self.ulysses else 1


@dataclass
class Patches:
    """The patches that a segment is cut into; the other segments go with the first of them.

    `bounds` are set when the sequence's length is known. `current` is the patch that is computed,
    None for the whole sequence.
    """

    segment: str
    bounds: tuple[tuple[int, int], ...] = ()
    current: int | None = None

    def range_of(self, segment: str, length: int, patch: int | None) -> tuple[int, int]:
        """Start and end of a patch's tokens of a segment that is `length` long."""
        if patch is None:
            return 0, length
        if segment == self.segment:
            return self.bounds[patch]
        return (0, length) if patch == 0 else (0, 0)


@dataclass
class Layout:
    """How long each segment of the current call is, as every rank sees from its inputs.

    `lengths` are those of what is computed now, all of it or a patch; `whole` of all.
    """

    groups: SequenceGroups
    patches: Patches | None = None
    lengths: dict[str, int] = field(default_factory=dict)
    whole: dict[str, int] = field(default_factory=dict)

    def share(self, tensor: torch.Tensor, segment: str, dim: int) -> torch.Tensor:
        """This rank's share of a whole tensor; notes the segment's length.

        Raises:
            InputError: fewer tokens than ranks.
        """
        ranks, length = self.groups.size, tensor.shape[dim]
        start, end = 0, length
        if self.patches is None or self.patches.current is None:
            self.whole[segment] = length
        elif segment == self.patches.segment:
            start, end = self.patches.bounds[self.patches.current]
        here = end - start
        if here < ranks and (here or self.patches is None):
            patch = "" if here == length else f" of a patch of {length}"
            raise InputError(
                f"{here} {segment} tokens{patch} can't be split over {ranks} ranks; use a plan "
                f"with ring x ulysses of at most {here}{' or fewer patches' if patch else ''}"
            )
        self.lengths[segment] = here
        first, last = _bounds(here, ranks, self.groups.index)
        # with the usual strides even where a dim is 1 long, as compiled blocks put out: they are
        # compiled anew for others
        share = tensor.narrow(dim, start + first, last - first)
        return share.clone(memory_format=torch.contiguous_format)

    def sizes(self, segments: Sequence[str]) -> list[int]:
        """How many tokens of these segments together each rank holds."""
        ranks = self.groups.size
        return [
            sum(last - first for first, last in self._ranges(segments, self.lengths, rank))
            for rank in range(ranks)
        ]

    def _ranges(
        self, segments: Sequence[str], lengths: Mapping[str, int], rank: int
    ) -> list[tuple[int, int]]:
        return [_bounds(lengths[segment], self.groups.size, rank) for segment in segments]

    def tokens(self, segments: Sequence[str], patch: int | None, ranks: Sequence[int]) -> list[int]:
        """Which tokens of the whole sequence some ranks hold of a patch, rank after rank."""
        found: list[int] = []
        for rank in ranks:
            before = 0
            for segment in segments:
                length = self.whole[segment]
                start, end = (
                    self.patches.range_of(segment, length, patch) if self.patches else (0, length)
                )
                first, last = _bounds(end - start, self.groups.size, rank)
                found += range(before + start + first, before + start + last)
                before += length
        return found


def _bounds(length: int, ranks: int, rank: int) -> tuple[int, int]:
    """A rank's share of a segment, which may be empty for all of them."""
    return split_bounds(length, ranks, rank) if length else (0, 0)


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

    def cut(split: Split, tensor: torch.Tensor) -> torch.Tensor:
        return layout.share(tensor, split.segment, split.dim)

    apply_splits(model, family, cut, undo)
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


def apply_splits(
    model: nn.Module,
    family: ModelFamily,
    cut: Callable[[Split, torch.Tensor], torch.Tensor],
    undo: ExitStack,
) -> None:
    """Has `cut` applied to each tensor at the family's splits; closing `undo` takes that away."""
    for split in family.splits:
        if split.place == "output":
            hook = functools.partial(_cut_output, functools.partial(cut, split))
            module = submodule(model, split.name)
            undo.callback(module.register_forward_hook(hook).remove)
    inputs = [split for split in family.splits if split.place == "input"]
    names = tuple(inspect.signature(type(model).forward).parameters)[1:]
    whole = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        given = dict(zip(names, args, strict=False)) | kwargs
        for split in inputs:
            if split.name in given:
                given[split.name] = _on_tensors(functools.partial(cut, split), given[split.name])
        return whole(**given)

    replace_forward(model, forward, undo)


def _cut_output(
    cut: Callable[[torch.Tensor], torch.Tensor], _module: nn.Module, _args: Any, output: Any
) -> Any:
    return _on_tensors(cut, output)


def _on_tensors(cut: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """`cut` applied to a tensor, or to each of a list of them."""
    if isinstance(value, torch.Tensor):
        return cut(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_on_tensors(cut, item) for item in value)
    return value


def _apply_gather(model: nn.Module, gather: Gather, layout: Layout) -> RemovableHandle:
    def whole(_module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        sizes, ranks = layout.sizes([gather.segment]), layout.groups.all
        return all_gather_uneven(output, gather.dim, sizes, ranks) if ranks else output

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
    cache: KeyCache | None = None
    number: int = 0

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
        self._check_length(query, key, sizes[self.layout.groups.index])
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
        return self.layout.groups.index // self.layout.groups.ulysses_size

    def _blocks(self) -> list[list[int]]:
        """Tokens of each rank, by ring member: ranks are numbered ring first."""
        sizes = self.layout.sizes(self.declared.segments)
        degree = self.layout.groups.ulysses_size
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
        if ring is None or self.gather_keys is not None:
            if self.gather_keys is not None:
                key, value = self.gather_keys(key, value, key_sizes)
            if self.cache is not None:
                key, value = self.cache.renew(self.number, key, value, self._tokens_of)
            return attend(query, key, value, scale, self.kernel)

        def block(
            q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            return attend_with_lse(q, k, v, scale, self.kernel)

        return ring_attention(query, key, value, ring, key_sizes, block)

    def _tokens_of(self, patch: int | None) -> list[int]:
        """Which tokens of the sequence the gathered keys of a patch are, in their order."""
        groups = self.layout.groups
        inner = groups.ulysses.order if groups.ulysses else (0,)
        outer = range(groups.ring.size) if groups.ring else (0,)
        ranks = [member * groups.ulysses_size + i for member in outer for i in inner]
        return self.layout.tokens(self.declared.segments, patch, ranks)

    def _check_length(self, query: torch.Tensor, key: torch.Tensor, expected: int) -> None:
        if query.shape[2] != expected or key.shape[2] != expected:
            raise InputError(
                f"{self.declared.modules} attends with {query.shape[2]} queries over "
                f"{key.shape[2]} keys on this rank, its share of the sequence has {expected} "
                "tokens; the family doesn't say rightly what it attends over"
            )
