"""Blocks whose weights are spread over ranks: each is put together shortly before it runs.

Source: ZeRO (arXiv 1910.02054), stage 3, for inference. Of all ranks that hold the same blocks each
keeps a piece of every block. There are two rooms for whole ones: while a block runs, the next one's
pieces are gathered beside it. A block's parameters lie at the same place all the time, in that room
of the two that is its own, and are valid while it is its turn.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ditplan.runtime.groups import AxisGroup
from ditplan.runtime.takeover import replace_forward
from ditplan.runtime.weights.loading import Put

ALIGNMENT = 256
"""Bytes; where torch's allocator would have a tensor begin."""

GATHER_BUFFERS = 2

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


class _Block:
    """A block's piece on this rank."""

    def __init__(self, module: nn.Module, dtypes: Mapping[str, torch.dtype], ranks: int) -> None:
        self.module = module
        self.places: dict[str, _Place] = {}
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
            for _ in range(min(GATHER_BUFFERS, len(self._blocks)))
        ]
        for number, block in enumerate(self._blocks):
            block.piece = torch.zeros(block.size // ranks, dtype=torch.uint8, device=device)
            for name, place in block.places.items():
                _set(block.module, name, _fixed(place.within(self._room(number))))

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
            flat = value.detach().to(place.dtype).contiguous().view(-1).view(torch.uint8)
            own = flat[start - place.start : end - place.start]
            block.piece[start - self._rank * length : end - self._rank * length].copy_(own)

    def apply(self, undo: ExitStack) -> None:
        """Has the blocks put together what they need when they are called; closing `undo` takes
        that away again.
        """
        for number, block in enumerate(self._blocks):
            forward = partial(self._run, number, block.module.forward)
            replace_forward(block.module, forward, undo)
        undo.callback(self._settle)

    def whole(self) -> None:
        """Gives the blocks all their weights again, on every rank: collective."""
        self._settle()
        for number, block in enumerate(self._blocks):
            self._begin(number)
            self._settle()
            for name, place in block.places.items():
                _set(block.module, name, _fixed(place.within(self._room(number)).clone()))

    def _run(self, number: int, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._coming is None or self._coming[0] != number or self._is_broken_off:
            self._settle()
            self._begin(number)
        self._settle()
        following = (number + 1) % len(self._blocks)
        if self._room(following) is not self._room(number):
            self._begin(following)
        return own(*args, **kwargs)

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
    """Those of a model that was loaded in pieces."""
    found: ShardedWeights | None = vars(model).get(ATTRIBUTE)
    return found


def shard(
    blocks: Sequence[nn.Module], group: AxisGroup, device: torch.device, undo: ExitStack
) -> ShardedWeights:
    """Spreads the weights of blocks that this rank has whole; closing `undo` gives them back.

    Those of a GPU's blocks that lie in the host's memory stay there meanwhile.
    """
    before = [dict(block.named_parameters()) for block in blocks]
    shards = ShardedWeights(blocks, group, device)
    on_host: list[tuple[nn.Module, str, nn.Parameter]] = []
    is_whole = False
    for number, parameters in enumerate(before):
        while parameters:
            name, parameter = parameters.popitem()
            shards.put(number, name, parameter)
            if parameter.device.type == "cpu" != device.type:
                on_host.append((blocks[number], name, parameter))
            else:
                is_whole = True

    def give_back() -> None:
        if is_whole:
            shards.whole()
        for block, name, parameter in on_host:
            _set(block, name, parameter)

    undo.callback(give_back)
    return shards


def _set(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    path, _, own = name.rpartition(".")
    module.get_submodule(path).register_parameter(own, parameter)


def _fixed(value: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)
