"""Blocks whose weights are spread over ranks: each is put together shortly before it runs.

Source: ZeRO (arXiv 1910.02054), stage 3, for inference. Of all ranks that hold the same blocks each
keeps a piece of every block. There is room for `BLOCKS_WHOLE_AT_ONCE`: while a block runs, the next
one's pieces are gathered beside it. While it is a block's turn it has parameters that lie in that
room which is its own; else `PieceParameter`s are in their place, which nobody can compute with.
Each belongs to the module that has it, wherever adapters put that.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ditplan.profiles.errors import InputError
from ditplan.profiles.sharded_blocks import BLOCKS_WHOLE_AT_ONCE
from ditplan.runtime.groups import AxisGroup
from ditplan.runtime.takeover import inner_forward, replace_forward
from ditplan.runtime.weights.loading import Put
from ditplan.runtime.weights.pieces import PieceParameter, flat_bytes

ALIGNMENT = 256
"""Bytes; where torch's allocator would have a tensor begin."""

ATTRIBUTE = "ditplan_sharded_weights"


@dataclass(frozen=True)
class _Place:
    """Where a parameter lies in its block's bytes."""

    start: int
    shape: torch.Size
    dtype: torch.dtype

    @property
    def size(self) -> int:
        return self.shape.numel() * self.dtype.itemsize

    def within(self, block: torch.Tensor) -> torch.Tensor:
        """The parameter in a block's bytes."""
        return block[self.start : self.start + self.size].view(self.dtype).view(self.shape)


@dataclass
class _Swap:
    """What a module has in place of a parameter, in turns; `kept` is what it had before, where
    that stays in the host's memory.
    """

    owner: dict[str, nn.Parameter | None]
    name: str
    piece: PieceParameter
    whole: nn.Parameter
    kept: nn.Parameter | None = None

    def replace(self, present: nn.Parameter, other: nn.Parameter) -> None:
        """Leaves what somebody else has put there: on this rank it is whole."""
        if self.owner.get(self.name) is present:
            self.owner[self.name] = other

    def given_back(self) -> nn.Parameter:
        """What the module has when weights are whole again, once they were gathered."""
        if self.kept is not None:
            return self.kept
        return nn.Parameter(self.whole.data.clone(), self.piece.requires_grad)


class _Block:
    """A block's piece on this rank."""

    def __init__(self, module: nn.Module, dtypes: Mapping[str, torch.dtype], ranks: int) -> None:
        self.module = module
        self.places: dict[str, _Place] = {}
        self.swaps: dict[str, _Swap] = {}
        end = 0
        for name, parameter in module.named_parameters():
            self.places[name] = _Place(end, parameter.shape, dtypes.get(name, parameter.dtype))
            end += -(-self.places[name].size // ALIGNMENT) * ALIGNMENT
        unit = ranks * ALIGNMENT
        self.size = -(-end // unit) * unit
        self.piece = torch.empty(0, dtype=torch.uint8)


class ShardedWeights:
    """The weights of some blocks, in pieces on the ranks of a group.

    Their parameters are replaced at once; `put` gives each its value.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        group: AxisGroup,
        device: torch.device,
        dtypes: Sequence[Mapping[str, torch.dtype]] = (),
    ) -> None:
        """`dtypes` are, for each block, those of parameters that shall have another one."""
        self._group, self._device = group, device
        ranks, self._rank = group.size, dist.get_rank(group.group)
        given = dtypes or [{}] * len(blocks)
        self._blocks = [_Block(one, of, ranks) for one, of in zip(blocks, given, strict=True)]
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._coming: tuple[int, Any, dist.ProcessGroup] | None = None
        largest = max(block.size for block in self._blocks)
        self._rooms = [
            torch.zeros(largest, dtype=torch.uint8, device=device)
            for _ in range(min(BLOCKS_WHOLE_AT_ONCE, len(self._blocks)))
        ]
        for number, block in enumerate(self._blocks):
            block.piece = torch.zeros(block.size // ranks, dtype=torch.uint8, device=device)
            for name, place in block.places.items():
                whole = _fixed(place.within(self._room(number)))
                take = partial(self._take, number, name)
                piece = PieceParameter(place.shape, place.dtype, device, take)
                path, _, own = name.rpartition(".")
                owner: dict[str, nn.Parameter | None]
                owner = block.module.get_submodule(path)._parameters
                before = owner[own]
                piece.requires_grad_(before is not None and before.requires_grad)
                block.swaps[name] = _Swap(owner, own, piece, whole)
                owner[own] = piece

    @property
    def held_bytes(self) -> int:
        """What this rank has of the blocks, room to run them included."""
        return sum(one.nbytes for one in (*self._rooms, *(block.piece for block in self._blocks)))

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor lies in the room for whole blocks."""
        there = tensor.untyped_storage().data_ptr()
        return any(there == room.untyped_storage().data_ptr() for room in self._rooms)

    def put(self, number: int, name: str, value: torch.Tensor) -> None:
        """Takes in this rank's part of a block's parameter."""
        block = self._blocks[number]
        place, length = block.places[name], block.piece.numel()
        start = max(place.start, self._rank * length)
        end = min(place.start + place.size, (self._rank + 1) * length)
        if start < end:
            flat = flat_bytes(value.to(place.dtype))
            own = flat[start - place.start : end - place.start]
            block.piece[start - self._rank * length : end - self._rank * length].copy_(own)

    def keep(self, number: int, name: str, parameter: nn.Parameter) -> None:
        """Has a parameter be the block's own again when it gets all its weights."""
        self._blocks[number].swaps[name].kept = parameter

    def _take(self, number: int, name: str, value: torch.Tensor) -> None:
        """Takes in what somebody else has copied into a parameter."""
        # a block that is put together already has other values
        self._settle()
        self.put(number, name, value)
        kept = self._blocks[number].swaps[name].kept
        if kept is not None:
            kept.data.copy_(value)

    def apply(self, undo: ExitStack) -> None:
        """Has the blocks put together what they need when they are called; closing `undo` takes
        that away again.
        """
        for number, block in enumerate(self._blocks):
            forward = partial(self._run, number, inner_forward(block.module))
            replace_forward(block.module, forward, undo)
        undo.callback(self._settle)

    def whole(self) -> None:
        """Gives the blocks all their weights again, on every rank: collective."""
        self._settle()
        for number, block in enumerate(self._blocks):
            if any(swap.kept is None for swap in block.swaps.values()):
                self._begin(number)
                self._settle()
            for swap in block.swaps.values():
                swap.replace(swap.piece, swap.given_back())

    def _run(self, number: int, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._coming is None or self._coming[0] != number or self._is_broken_off:
            self._settle()
            self._begin(number)
        self._settle()
        following = (number + 1) % len(self._blocks)
        if self._room(following) is not self._room(number):
            self._begin(following)
        swaps = self._blocks[number].swaps.values()
        try:
            for swap in swaps:
                swap.replace(swap.piece, swap.whole)
            return own(*args, **kwargs)
        finally:
            for swap in swaps:
                swap.replace(swap.whole, swap.piece)

    def _room(self, number: int) -> torch.Tensor:
        return self._rooms[number % len(self._rooms)]

    def _begin(self, number: int) -> None:
        """Starts to put a block together, when what is enqueued by now has left its room."""
        block = self._blocks[number]
        whole = self._room(number)[: block.size]
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            group = self._group.group
            work = dist.all_gather_into_tensor(whole, block.piece, group, async_op=True)
        self._coming = number, work, group

    @property
    def _is_broken_off(self) -> bool:
        """Whether what is coming was on its way in a group that there is no more."""
        return self._coming is not None and self._coming[2] is not self._group.group

    def _settle(self) -> None:
        """Has what follows wait for the block that is coming, if one is."""
        if self._coming is None or self._is_broken_off:
            self._coming = None
            return
        _, work, _ = self._coming
        self._coming = None
        with torch.cuda.stream(self._stream):
            work.wait()
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)


def loaded_sharded(
    model: nn.Module,
    paths: Sequence[str],
    group: AxisGroup,
    device: torch.device,
    dtype_of: Callable[[str], torch.dtype],
) -> Put:
    """What takes the weights of blocks (their paths in the model) as they are read, so that no rank
    ever has all of them; `shards_of` the model finds them afterwards.
    """
    blocks = [model.get_submodule(path) for path in paths]
    dtypes = [
        {name: dtype_of(f"{path}.{name}") for name, _ in block.named_parameters()}
        for path, block in zip(paths, blocks, strict=True)
    ]
    places = {
        f"{path}.{name}": (number, name)
        for number, path in enumerate(paths)
        for name in dtypes[number]
    }
    shards = ShardedWeights(blocks, group, device, dtypes)
    vars(model)[ATTRIBUTE] = shards

    def put(name: str, value: torch.Tensor) -> bool:
        if name in places:
            shards.put(*places[name], value)
        return name in places

    return put


def shards_of(model: nn.Module) -> ShardedWeights | None:
    """Those of a model whose weights are in pieces."""
    found: ShardedWeights | None = vars(model).get(ATTRIBUTE)
    return found


def shard(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    group: AxisGroup,
    device: torch.device,
    undo: ExitStack,
) -> ShardedWeights:
    """Spreads the weights of a model's blocks that this rank has whole; closing `undo` gives them
    back, and until then `shards_of` the model finds them.

    Those of a GPU's blocks that lie in the host's memory stay there meanwhile.

    Raises:
        InputError: weights of a class of their own, as quantization makes, have no pieces.
    """
    for block in blocks:
        for name, parameter in block.named_parameters():
            if type(parameter) is not nn.Parameter:
                raise InputError(
                    f"{name} of a {type(block).__name__} is a {type(parameter).__name__}, as "
                    "quantization makes, which can't be spread over ranks; use a plan with "
                    "replicated weights"
                )
    before = [dict(block.named_parameters()) for block in blocks]
    shards = ShardedWeights(blocks, group, device)
    for number, parameters in enumerate(before):
        while parameters:
            name, parameter = parameters.popitem()
            shards.put(number, name, parameter)
            if parameter.device.type == "cpu" != device.type:
                shards.keep(number, name, parameter)
    undo.callback(shards.whole)
    vars(model)[ATTRIBUTE] = shards
    undo.callback(vars(model).pop, ATTRIBUTE)
    return shards


def _fixed(value: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)
