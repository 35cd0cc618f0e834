"""Where the ranks of a plan meet, and how a call that fails on one of them fails on all.

What is raised on one rank is raised on all: the others hear of it where they next meet. Those that
wait for data instead are woken: a rank that failed waits `GRACE_S` for the others and then breaks
all transfers off. Groups that were broken off are made anew at once, and the plan is put in force
anew, with new groups, links and compiled blocks, when the next call begins.

On GPUs a host that waits for its device isn't woken by an exception: a thread on each rank looks
once in `LOOK_S` whether another has failed, and aborts NCCL's communicators, which ends their
kernels. A kernel that waits for a flag in memory that GPUs share can't be ended; a rank whose host
waits for such a one doesn't come to the meeting, and after `LOST_S` the others raise an error that
says so, after which the plan refuses calls. A replayed CUDA graph is like any other kernel here:
graphs are captured anew with the plan.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import NoReturn

import torch

from ditplan.profiles.errors import ClusterError, InputError
from ditplan.runtime.admission.agreement import (
    Report,
    is_dirty,
    origin,
    out_of_step,
    raised_again,
)
from ditplan.runtime.admission.channel import Channel, Message, Point
from ditplan.runtime.admission.failure_watch import FailureWatch
from ditplan.runtime.groups import GroupCache

GRACE_S = 1.0
LOST_S = 120.0


class Meetings:
    """Of one rank with the others of a plan.

    `calls` is how many calls of the transformer were begun, `is_inside` whether transfers of one
    may be under way.
    """

    def __init__(
        self, channel: Channel, groups: GroupCache, device: torch.device, *, may_renew: bool
    ) -> None:
        """`may_renew` is whether the plan's ranks are all there are: so they can make groups."""
        self.calls = 0
        self.is_inside = False
        self._channel, self._groups, self._may_renew = channel, groups, may_renew
        self._watch = FailureWatch(channel, groups) if device.type == "cuda" else None
        self._settled: BaseException | None = None
        self._refusal = ""
        self._renewals = groups.renewals

    def close(self) -> None:
        """Ends what watches for failures."""
        if self._watch is not None:
            self._watch.close()

    def meet(self, message: Message) -> list[Message]:
        """Exchanges messages with all other ranks.

        Raises:
            InputError: they are at another place.
            What was raised on any of them.
        """
        messages = self._channel.exchange(message)
        if any(one.point == Point.FAILED for one in messages):
            reports = self._channel.exchange_objects(Report())
            self._after(reports)
            self.refuse(raised_again(reports, self._channel.ranks, self._channel.rank, None))
        if len({(one.point, one.calls) for one in messages}) > 1:
            self.refuse(out_of_step(self._channel.ranks, messages))
        return messages

    def refuse(self, error: BaseException) -> NoReturn:
        """Raises what all ranks raise: none waits to be told."""
        self._settled = error
        raise error

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """What is raised in here on one rank is raised on all."""
        if self._refusal:
            raise InputError(self._refusal)
        self.is_inside, self.calls, self._settled = False, 0, None
        try:
            with self._watch.watching() if self._watch else nullcontext():
                yield
        except BaseException as error:
            if error is self._settled:
                raise
            told = self._told(error)
            if told is error:
                raise
            raise told from error

    def _told(self, error: BaseException) -> BaseException:
        """What all ranks raise for what was raised here."""
        meeting = self._channel.begin(Message(Point.FAILED, self.calls))
        broke = not meeting.came_within(GRACE_S)
        if broke:
            if self._watch:
                self._watch.tell()
            self._groups.break_off()
            if not meeting.came_within(LOST_S):
                self._refusal = (
                    f"a call failed on rank {self._channel.rank}, and other ranks didn't end it "
                    f"within {LOST_S:g} s: start the ranks again"
                )
                return error
        try:
            meeting.messages()
            mine = Report.of(error, broke=broke, inside=self.is_inside, calls=self.calls)
            reports = self._channel.exchange_objects(mine)
        except ClusterError as gone:
            self._refusal = str(gone)
            return error
        self._after(reports)
        return raised_again(reports, self._channel.ranks, self._channel.rank, error)

    def _after(self, reports: Sequence[Report]) -> None:
        """Makes groups anew whose transfers were left unfinished; on all ranks."""
        if not is_dirty(reports):
            return
        rank = self._channel.ranks[origin(reports)]
        if not self._may_renew:
            self._refusal = (
                f"a call failed on rank {rank} in the middle of an exchange, and there are ranks "
                "beside the plan's, which don't take part in making groups anew: close the plan "
                "and put it in force again on every rank"
            )
            return
        self._groups.break_off()
        if self._watch:
            self._watch.forget()
        try:
            self._groups.renew()
        except RuntimeError as error:
            self._refusal = (
                f"a call failed on rank {rank} in the middle of an exchange, and its groups can't "
                f"be made anew ({str(error).partition(chr(10))[0]}): start the ranks again"
            )

    def was_renewed(self, renew: Callable[[], None]) -> bool:
        """Puts the plan in force anew if transfers were broken off since, by a call of any plan."""
        if self._groups.renewals == self._renewals or self._refusal:
            return False
        with self.failing_together():
            renew()
        self._renewals = self._groups.renewals
        return True
