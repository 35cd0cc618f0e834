"""A plan's calls: the same on all ranks, or the same error on all of them.

The hosts meet (by `Channel`, not by what carries data) before a pipeline's call begins, before its
first call of the transformer, before each further one, and when it has ended. So:

- A rank that was given something else is found before anything is exchanged; where tensors differ
  in their values alone, at the next meeting: devices hash them while they begin with the first
  step. PipeFusion's ranks, which don't meet before each step, wait for the hashes. Where the calls
  of later steps drift apart (a callback on one rank, noise of its own), the end of the call finds
  it: a sketch of each step's latents is compared. Weights that have changed are looked for while
  the devices are at work on the first step, and compared at the end.
- Where no generator is given, all ranks draw from the first rank's state of the global generators.
  Afterwards each rank has its own again, unless they were the same.

PipeFusion's ranks are at different steps, so they meet at the begin, the first call and the end.

`meetings.py` says how a call fails on all of them.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ditplan.profiles.errors import InputError
from ditplan.runtime.admission.agreement import disagreement
from ditplan.runtime.admission.calls import Calls
from ditplan.runtime.admission.channel import Channel, Message, Point
from ditplan.runtime.admission.digests import (
    Digesting,
    Leaf,
    arguments_of,
    digest_of,
    leaves_of,
    state_of,
)
from ditplan.runtime.admission.meetings import Meetings
from ditplan.runtime.admission.randomness import CommonNoise, RandomState
from ditplan.runtime.admission.readback import Readback
from ditplan.runtime.admission.sketches import drifted, is_rounding, sketch_of, steps_of
from ditplan.runtime.admission.weights import WeightsWatch, with_known
from ditplan.runtime.groups import GroupCache
from ditplan.runtime.takeover import (
    call_arguments_of,
    inner_forward,
    names_arguments,
    replace_forward,
)


@dataclass
class _Call:
    """One call of the pipeline."""

    arguments: dict[str, Any]
    pipeline: Any
    calls: int = 0
    are_weights_looked_at: bool = False
    values: Digesting | None = None
    sketches: list[Readback] = field(default_factory=list)


class CallGuard(Calls):
    """The meetings of one rank of a plan; `renew` puts the plan in force anew."""

    def __init__(
        self,
        channel: Channel,
        groups: GroupCache,
        device: torch.device,
        models: Sequence[nn.Module],
        *,
        by_patches: bool,
        may_renew: bool,
        devices_are_unlike: bool,
    ) -> None:
        """`by_patches` is whether the plan has PipeFusion, `may_renew` whether the plan's ranks are
        all there are, so that they can make groups. Devices that are unlike round differently.
        """
        super().__init__()
        self._channel, self._device = channel, device
        self._by_patches = by_patches
        self._devices_are_unlike = devices_are_unlike
        self._weights = WeightsWatch(
            models, lambda one: any(holds(one) for holds in self.pieces), device
        )
        self._meetings = Meetings(channel, groups, device, may_renew=may_renew)
        self._call: _Call | None = None
        self._are_weights_known = False
        self._is_anew = True
        self._noise = CommonNoise(channel)
        self.strays_refused = ""
        self.decodes_together = False
        self.renew: Callable[[], None] = lambda: None
        self.checks: list[Callable[[], None]] = []

    def close(self) -> None:
        """Ends what watches for failures."""
        self._meetings.close()

    def run(self, pipeline: Any, own: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The pipeline's call, once all ranks agree on it; gives what it gives.

        Raises:
            InputError: the ranks weren't given the same, or the plan can't run any more.
            Whatever was raised on any rank.
        """
        if self._meetings.was_renewed(self.renew):
            # what makes the calls now is another one than `own`
            return pipeline(*args, **kwargs)
        with self.failing_together():
            given = call_arguments_of(own, pipeline, args, kwargs)
            self._call = call = _Call(given, pipeline)
            with self._common_noise():
                result = super().run(pipeline, own, args, kwargs)
            self._end(call)
        return result

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """What is raised in here on one rank is raised on all."""
        try:
            with self._meetings.failing_together():
                yield
        except BaseException:
            self._noise.forget()
            raise
        finally:
            self._call = None

    def guard(self, model: nn.Module, undo: ExitStack) -> None:
        """Has the ranks meet before each call of a transformer; closing `undo` ends that."""
        own, named = inner_forward(model), names_arguments(model)
        first = list(inspect.signature(type(model).forward).parameters)[1]

        def forward(*args: Any, **kwargs: Any) -> Any:
            inputs = named(*args, **kwargs)
            if self._call is None:
                return self._stray(model, own, inputs)
            self.admit(inputs)
            self._call.sketches.append(Readback([sketch_of(inputs[first])]))
            self._meetings.is_inside = True
            output = own(*args, **kwargs)
            self._meetings.is_inside = False
            self._look_at_weights()
            return output

        replace_forward(model, forward, undo)

    def admit(self, inputs: dict[str, Any]) -> None:
        """Meets the others before a call of the transformer.

        Raises:
            InputError: they weren't given the same, or are elsewhere.
        """
        call = self._call
        assert call is not None
        call.calls += 1
        self._meetings.calls = call.calls
        if call.calls == 1:
            for check in self.checks:
                check()
            self._compare_given(call, inputs)
            self._weights.mark()
        else:
            values = _digests_of(call)
            message = Message(Point.STEP, call.calls, digest_of(values), anew=self._is_anew)
            messages = self._meetings.meet(message)
            if len({message.digest for message in messages}) > 1:
                self._require_alike(self._channel.exchange_objects(values))
            self._capture_alike(messages)
        # patches are under way until the call ends
        self._meetings.is_inside = self._by_patches

    def doubt_changed_weights(self) -> None:
        """Has weights that have changed since they were compared be compared when ranks next meet
        for it.
        """
        self._weights.mark()
        self._are_weights_known &= not self._weights.has_changed()

    def _look_at_weights(self) -> None:
        """Looks for changed weights once a call, while devices are at work on it."""
        if self._call is not None and not self._call.are_weights_looked_at:
            self._call.are_weights_looked_at = True
            self._are_weights_known &= not self._weights.has_changed()

    def know_plan(self) -> None:
        """Notes that the plan was put in force, and takes the weights as they are for what was
        compared: the plan has changed them.
        """
        self._weights.look()
        self._is_anew = True

    def _capture_alike(self, messages: Sequence[Message]) -> None:
        """Has graphs captured anew where the plan of some ranks was put in force anew: capturing
        makes exchanges, in which all ranks take part or none.
        """
        if len({message.anew for message in messages}) > 1:
            for forget in self.graphs:
                forget()
        self._is_anew = False

    def _agree(self, point: Point, leaves: list[tuple[str, Leaf]]) -> None:
        """Compares what was given with all other ranks, and weights in doubt.

        Raises:
            InputError: they differ, or the ranks are at different places.
        """
        digesting = Digesting(leaves, self._device)
        values_later = point is Point.GIVEN and not (self._by_patches or self._devices_are_unlike)
        mine = digesting.of_text() if values_later else digesting.digests()
        doubtful = not self._are_weights_known
        message = Message(point, 0, digest_of(mine), doubtful, self._is_anew)
        messages = self._meetings.meet(message)
        if len({message.digest for message in messages}) > 1:
            found = self._channel.exchange_objects(digesting.digests())
            if not self._is_rounding(leaves, found):
                self._require_alike(found)
        if self._call is not None and values_later:
            self._call.values = digesting
        if any(message.doubtful for message in messages):
            self.compare_weights()
        self._capture_alike(messages)

    def _require_alike(self, found: Sequence[dict[str, bytes]]) -> None:
        """Refuses digests that aren't the same on all ranks.

        Raises:
            InputError: says what differs.
        """
        if any(of_rank != found[0] for of_rank in found):
            self._meetings.refuse(disagreement(self._channel.ranks, found))

    def _is_rounding(
        self, leaves: list[tuple[str, Leaf]], found: Sequence[dict[str, bytes]]
    ) -> bool:
        """Whether all that differs was computed by devices that aren't alike, before the call."""
        if not self._devices_are_unlike:
            return False
        names = {name for of_rank in found for name in of_rank}
        differing = {name for name in names if len({one.get(name) for one in found}) > 1}
        values = {
            name: leaf.detach().cpu()
            for name, leaf in leaves
            if name in differing and isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
        }
        of_all = self._channel.exchange_objects(values)
        return all(one.keys() == differing for one in of_all) and is_rounding(of_all)

    def compare_weights(self) -> None:
        """Compares the transformers' weights with those of all other ranks.

        Raises:
            InputError: they differ.
        """
        self._are_weights_known = False
        found = self._channel.exchange_objects(self._weights.digests())
        self._require_alike(with_known(found))
        self._are_weights_known = True

    def _stray(self, model: nn.Module, own: Callable[..., Any], inputs: dict[str, Any]) -> Any:
        """A call of the transformer by somebody else: another pipeline around it, or its user."""
        if self.strays_refused:
            raise InputError(self.strays_refused)
        if self._meetings.was_renewed(self.renew):
            return model.forward(**inputs)
        with self.failing_together():
            self.doubt_changed_weights()
            self._agree(Point.STRAY, _leaves_of_inputs(inputs))
            self._meetings.is_inside = True
            output = own(**inputs)
            self._meetings.is_inside = False
            return output

    def _compare_given(self, call: _Call, inputs: dict[str, Any]) -> None:
        scheduler = state_of(getattr(call.pipeline, "scheduler", None))
        given = [*arguments_of(call.arguments)]
        if self.decodes_together:
            given.append(("output_type", str(call.arguments.get("output_type"))))
        self._agree(Point.GIVEN, [*given, *scheduler, *_leaves_of_inputs(inputs)])

    @contextmanager
    def _common_noise(self) -> Iterator[None]:
        """Has all ranks draw from the first one's state of the generators that belong to nobody."""
        mine = RandomState.now(self._device)
        messages = self._meetings.meet(Message(Point.BEGIN, digest=mine.digest()))
        with self._noise.of_first_rank(mine, [message.digest for message in messages]):
            yield

    def _end(self, call: _Call) -> None:
        self._look_at_weights()
        doubtful = not self._are_weights_known
        values, steps = _digests_of(call), steps_of(call.sketches)
        digest = digest_of(values | {"sketches of steps": steps.numpy().tobytes()})
        messages = self._meetings.meet(Message(Point.END, call.calls, digest, doubtful))
        if any(message.doubtful for message in messages):
            self.compare_weights()
        if len({message.digest for message in messages}) == 1:
            return
        found = self._channel.exchange_objects((values, steps))
        self._require_alike([of_rank for of_rank, _ in found])
        if (drift := drifted([of_rank for _, of_rank in found])) is not None:
            step, others = drift
            ranks = ", ".join(str(self._channel.ranks[number]) for number in others)
            self._meetings.refuse(
                InputError(
                    f"what the transformer was given for its call number {step + 1} differs on "
                    f"rank {ranks}, though the call was begun alike, so there is no picture: have "
                    "callbacks change latents on every rank or on none, and give noise that is "
                    "drawn between steps a generator of the same seed on every rank"
                )
            )


def _digests_of(call: _Call) -> dict[str, bytes]:
    """Of what the call was given, if its values are still to be compared."""
    digesting, call.values = call.values, None
    return digesting.digests() if digesting else {}


def _leaves_of_inputs(inputs: dict[str, Any]) -> list[tuple[str, Leaf]]:
    return [
        leaf
        for name, value in sorted(inputs.items())
        for leaf in leaves_of(f"transformer's {name}", value)
    ]
