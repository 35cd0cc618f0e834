"""How the hosts of a plan's ranks tell each other where they are in a call, apart from its data.

By memory that they share on one host, else by a gloo group of its own, whatever the device: it
waits for no GPU, and it still works when the groups that carry data don't.
"""

import pickle
import time
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from ditplan.profiles.errors import ClusterError
from ditplan.runtime.admission.board import CAPACITY, Board, make_board
from ditplan.runtime.groups import CONTROL, RankContext
from ditplan.runtime.ranks.messages import RANK_IS_GONE

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
    what it was given, whether its weights may have changed, and whether its plan was put in force
    since it last met the others before a call.
    """

    point: Point
    calls: int = 0
    digest: bytes = bytes(DIGEST_BYTES)
    doubtful: bool = False
    anew: bool = False

    def to_bytes(self) -> bytes:
        """As many for every message."""
        head = bytes((self.point, self.doubtful + 2 * self.anew)) + self.calls.to_bytes(6, "little")
        return head + self.digest

    @classmethod
    def from_bytes(cls, found: bytes) -> "Message":
        """What `to_bytes` gave."""
        calls = int.from_bytes(found[2:8], "little")
        return cls(Point(found[0]), calls, found[8:], bool(found[1] & 1), bool(found[1] & 2))

    def to_tensor(self) -> torch.Tensor:
        """`to_bytes`, for a process group."""
        return torch.frombuffer(bytearray(self.to_bytes()), dtype=torch.uint8)

    @classmethod
    def from_tensor(cls, tensor: torch.Tensor) -> "Message":
        """What `to_tensor` gave."""
        return cls.from_bytes(tensor.numpy().tobytes())


class Round:
    """A message on its way to all ranks, by a group of theirs."""

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


class HostRound:
    """As `Round`, by the memory that ranks of one host share."""

    def __init__(self, board: Board, message: Message) -> None:
        self._posted = board.begin(message.to_bytes())

    def came_within(self, seconds: float) -> bool:
        """As `Round`; also of a rank that is gone, which `messages` tells."""
        try:
            return self._posted.came_within(seconds)
        except ClusterError:
            return True

    def messages(self) -> list[Message]:
        """As `Round`."""
        return [Message.from_bytes(one) for one in self._posted.messages()]


class Channel:
    """Between the ranks of a plan; made on all ranks of the world, usable on those."""

    def __init__(self, context: RankContext, ranks: Sequence[int]) -> None:
        self.ranks = tuple(sorted(ranks))
        self.rank = context.rank
        self._group = context.groups.group(self.ranks, CONTROL)
        self._board: Board | None = None
        if self._group is not None and len(self.ranks) > 1:
            self._board = make_board(self.ranks.index(self.rank), self._by_group)

    @property
    def group(self) -> dist.ProcessGroup:
        """The group of hosts."""
        assert self._group is not None
        return self._group

    def begin(self, message: Message) -> Round | HostRound:
        """Sends a message; all ranks send one."""
        return HostRound(self._board, message) if self._board else Round(self.group, message)

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
        if self._board is None:
            return self._by_group(mine)
        packed = pickle.dumps(mine)
        found = self._board.begin(packed if len(packed) <= CAPACITY else b"").messages()
        return [pickle.loads(one) for one in found] if all(found) else self._by_group(mine)

    def _by_group(self, mine: Any) -> list[Any]:
        found: list[Any] = [None] * len(self.ranks)
        try:
            dist.all_gather_object(found, mine, group=self.group)
        except RuntimeError as error:
            raise lost(error) from error
        return found


def lost(error: Exception) -> ClusterError:
    """What a rank that is gone is told as."""
    reason = str(error).strip().partition("\n")[0]
    return ClusterError(f"{RANK_IS_GONE}: {reason}; start the ranks again")
