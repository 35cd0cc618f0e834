"""How the hosts of a plan's ranks tell each other where they are in a call, apart from its data.

By a gloo group of its own, whatever the device: it waits for no GPU, and it still works when the
groups that carry data don't.
"""

import time
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from ditplan.profiles.errors import ClusterError
from ditplan.runtime.groups import CONTROL, RankContext

DIGEST_BYTES = 16
TICK_S = 0.002


class Point(IntEnum):
    """Where a rank is."""

    BEGIN = 0
    """It is about to run a pipeline's call."""
    GIVEN = 1
    """It is about to call the transformer, for the first time in this call."""
    STEP = 2
    """As GIVEN, for a later time."""
    STRAY = 3
    """It is about to call the transformer, outside of any call of the plan's pipeline."""
    END = 4
    """It has done the pipeline's call."""
    FAILED = 5
    """Something was raised in it."""
    PLAN = 6
    """It is putting a plan in force."""


class Message(NamedTuple):
    """What a rank says: where it is, how many calls of the transformer it has begun, a digest of
    what it was given, and whether its weights have changed.
    """

    point: Point
    calls: int = 0
    digest: bytes = bytes(DIGEST_BYTES)
    flag: bool = False

    def to_tensor(self) -> torch.Tensor:
        """As bytes, as many for every message."""
        head = bytes((self.point, self.flag)) + self.calls.to_bytes(6, "little")
        return torch.frombuffer(bytearray(head + self.digest), dtype=torch.uint8)

    @classmethod
    def from_tensor(cls, tensor: torch.Tensor) -> "Message":
        """What `to_tensor` gave."""
        found = tensor.numpy().tobytes()
        calls = int.from_bytes(found[2:8], "little")
        return cls(Point(found[0]), calls, found[8:], bool(found[1]))


class Round:
    """A message on its way to all ranks."""

    def __init__(self, group: dist.ProcessGroup, message: Message) -> None:
        mine = message.to_tensor()
        self._found = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
        self._work = dist.all_gather(self._found, mine, group=group, async_op=True)

    def came_within(self, seconds: float) -> bool:
        """Whether all ranks' messages are there; waits for so long at most."""
        deadline = time.monotonic() + seconds
        while not self._work.is_completed():
            if time.monotonic() > deadline:
                return False
            time.sleep(TICK_S)
        return True

    def messages(self) -> list[Message]:
        """Those of all ranks, in the order of `Channel.ranks`.

        Raises:
            ClusterError: a rank is gone.
        """
        try:
            self._work.wait()
        except RuntimeError as error:
            raise lost(error) from error
        return [Message.from_tensor(one) for one in self._found]


class Channel:
    """Between the ranks of a plan; made on all ranks of the world, usable on those."""

    def __init__(self, context: RankContext, ranks: Sequence[int]) -> None:
        self.ranks = tuple(sorted(ranks))
        self.rank = context.rank
        self._group = context.groups.group(self.ranks, CONTROL)

    @property
    def group(self) -> dist.ProcessGroup:
        """The group of hosts."""
        assert self._group is not None
        return self._group

    def begin(self, message: Message) -> Round:
        """Sends a message; all ranks send one."""
        return Round(self.group, message)

    def exchange(self, message: Message) -> list[Message]:
        """All ranks' messages, in the order of `ranks`.

        Raises:
            ClusterError: a rank is gone.
        """
        return self.begin(message).messages()

    def exchange_objects(self, mine: Any) -> list[Any]:
        """All ranks' objects, pickled on their way, in the order of `ranks`.

        Raises:
            ClusterError: a rank is gone.
        """
        found: list[Any] = [None] * len(self.ranks)
        try:
            dist.all_gather_object(found, mine, group=self.group)
        except RuntimeError as error:
            raise lost(error) from error
        return found

    def exchange_tensors(self, mine: torch.Tensor) -> list[torch.Tensor]:
        """All ranks' tensors, of one shape and on the CPU, in the order of `ranks`.

        Raises:
            ClusterError: a rank is gone.
        """
        found = [torch.empty_like(mine) for _ in self.ranks]
        try:
            dist.all_gather(found, mine, group=self.group)
        except RuntimeError as error:
            raise lost(error) from error
        return found


def lost(error: Exception) -> ClusterError:
    """What a rank that is gone is told as."""
    reason = str(error).strip().partition("\n")[0]
    return ClusterError(f"another rank of the plan is gone: {reason}; start the ranks again")
