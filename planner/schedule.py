"""When the last patch leaves a pipeline: tasks on stages, transfers on links, step after step.

Source: PipeFusion (arXiv 2405.14430), figure 4. It knows durations only, nothing of models.
"""

from collections.abc import Sequence
from dataclasses import dataclass

SAME_RATE = 1e-10
"""A step repeats the one before when no time differs by more than this share of a step."""


@dataclass(frozen=True)
class Durations:
    """Seconds of a pipeline's tasks in a step, each the same in all steps.

    `stage_s[s][p]` is what stage s computes for patch p, `hop_s[s][p]` the transfer of what that
    gives to the next stage, from the last one to the first. `between_s[p]` is what the first stage
    does between receiving a patch and computing for its next step, and after the last one.
    """

    stage_s: Sequence[Sequence[float]]
    hop_s: Sequence[Sequence[float]]
    between_s: Sequence[float]

    @property
    def with_free_links(self) -> "Durations":
        """The same if transfers took no time."""
        return Durations(self.stage_s, [[0.0] * len(row) for row in self.hop_s], self.between_s)


def pipeline_s(durations: Durations, steps: int, *, sending_computes: bool = False) -> float:
    """Seconds until the first stage has all patches of the last step.

    An event simulation: every stage and every link takes its tasks in order, step by step and patch
    by patch, each as soon as what it waits for is there. A stage waits for the link to it, a link
    for what the stage computed, and the first stage for its own patch of the step before. With
    `sending_computes` a stage computes nothing while it sends.

    Delaying all by the same time delays all that follows by it. So once a step repeats the one
    before, only later, all others do, and what is left is counted and not simulated.
    """
    between_s = durations.between_s
    stages, patches = len(durations.stage_s), range(len(between_s))
    tasks = list(
        zip(zip(*durations.stage_s, strict=True), zip(*durations.hop_s, strict=True), strict=True)
    )
    links_are_free = not any(map(any, durations.hop_s))
    stage_free, link_free = [0.0] * stages, [0.0] * stages
    returned = [0.0] * len(patches)
    before: list[float] | None = None
    for step in range(steps):
        for patch in patches:
            ready = 0.0
            if step:
                ready = max(stage_free[0], returned[patch]) + between_s[patch]
            compute_s, send_s = tasks[patch]
            if links_are_free:
                ready = _passed(stage_free, compute_s, ready)
            else:
                ready = _sent(stage_free, link_free, compute_s, send_s, ready, sending_computes)
            returned[patch] = ready
        now = [*stage_free, *returned] if links_are_free else [*stage_free, *link_free, *returned]
        if step > 1 and before is not None:
            period_s = now[0] - before[0]
            if all(
                abs(b - a - period_s) <= SAME_RATE * period_s
                for a, b in zip(before, now, strict=True)
            ):
                left_s = (steps - 1 - step) * period_s
                return _received(stage_free[0], returned, between_s) + left_s
        before = now
    return _received(stage_free[0], returned, between_s)


def _passed(stage_free: list[float], compute_s: Sequence[float], ready: float) -> float:
    """When a patch that is ready at a time is through all stages; notes when each is free again."""
    for stage, (free, task_s) in enumerate(zip(stage_free, compute_s, strict=True)):
        ready = (ready if ready > free else free) + task_s
        stage_free[stage] = ready
    return ready


def _sent(
    stage_free: list[float],
    link_free: list[float],
    compute_s: Sequence[float],
    send_s: Sequence[float],
    ready: float,
    sending_computes: bool,
) -> float:
    """The same over links that take their time."""
    for stage, task_s in enumerate(compute_s):
        free = stage_free[stage]
        done = (ready if ready > free else free) + task_s
        free = link_free[stage]
        ready = (done if done > free else free) + send_s[stage]
        stage_free[stage] = ready if sending_computes else done
        link_free[stage] = ready
    return ready


def _received(free_s: float, returned: Sequence[float], between_s: Sequence[float]) -> float:
    """When the first stage, free at a time, has taken in the last patch."""
    for at_s, then_s in zip(returned, between_s, strict=True):
        free_s = max(free_s, at_s) + then_s
    return free_s
