"""What the stages of a pipeline do, and when: a function that a pool sends to its ranks."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any, Literal

from ditplan.profiles.catalog import shipped_weights
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import ExecutionPlan
from ditplan.runtime.generation import measure_plan
from ditplan.runtime.groups import RankContext
from ditplan.runtime.pipefusion.stage_predictor import StagePredictor
from ditplan.runtime.pipefusion.visit_runner import VisitRunner
from ditplan.runtime.transport.collective_link import _Received


@dataclass(frozen=True)
class Event:
    """What a rank did, from when to when by the host's clock; `patch` only of what is computed."""

    what: Literal["compute", "wait", "agree"]
    patch: int | None
    start_s: float
    end_s: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end_s - self.start_s


@contextmanager
def recorded(events: list[Event]) -> Iterator[None]:
    """Has the stage of this process write down what it does: the rest is time between events."""

    def timed(what: Any, call: Callable[..., Any]) -> Callable[..., Any]:
        def around(*args: Any) -> Any:
            start_s = monotonic()
            result = call(*args)
            # of runner, inputs, visiting and more
            patch = args[2].patch if what == "compute" else None
            events.append(Event(what, patch, start_s, monotonic()))
            return result

        return around

    with ExitStack() as undo:
        for owner, name, what in (
            (VisitRunner, "_compute", "compute"),
            (StagePredictor, "agree", "agree"),
            (_Received, "wait", "wait"),
        ):
            original = getattr(owner, name)
            undo.callback(setattr, owner, name, original)
            setattr(owner, name, timed(what, original))
        yield


def timeline(context: RankContext, spec: ModelSpec, plan: ExecutionPlan) -> list[Event]:
    """What this rank did after the warm-up steps of a denoising loop."""
    weights = shipped_weights(spec.name)
    # the first run loads, and begins with a short one
    measure_plan(context, spec, weights, plan)
    events: list[Event] = []
    with recorded(events):
        measure_plan(context, spec, weights, plan)
    of_all = [
        n for n, event in enumerate(events) if event.what == "compute" and event.patch is None
    ]
    return events[of_all[-1] + 1 :]
