"""When the last patch leaves a pipeline: tasks on stages, transfers on links, step after step.

Source: PipeFusion (arXiv 2405.14430), figure 4. It knows durations only, nothing of models.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ditplan.profiles.folded_schedule import most_underway

SAME_RATE = 1e-10
"""A step repeats the one before when no time differs by more than this share of a step."""


@dataclass(frozen=True)
class Durations:
    """Seconds of a pipeline's tasks in a step, each the same in all steps.

    `stage_s[s][p]` is what stage s computes for patch p, `hop_s[s][p]` the transfer of what that
    gives to the next stage, from the last one to the first. `between_s[p]` is what the first stage
    does between receiving a patch and computing for its next step, and after the last one.

    With the folded schedule `back_s[s][p]` is what stage s, any but the last, computes when the
    patch comes back to it from the next one, by a transfer of `hop_s[s][p]` as on the way there.
    """

    stage_s: Sequence[Sequence[float]]
    hop_s: Sequence[Sequence[float]]
    between_s: Sequence[float]
    back_s: Sequence[Sequence[float]] = ()

    @property
    def with_free_links(self) -> "Durations":
        """The same if transfers took no time."""
        return replace(self, hop_s=[[0.0] * len(row) for row in self.hop_s])

    @property
    def of_stages_s(self) -> list[float]:
        """What each stage computes in a step."""
        stages_s = [sum(row) for row in self.stage_s]
        for stage, row in enumerate(self.back_s):
            stages_s[stage] += sum(row)
        return stages_s


def pipeline_s(durations: Durations, steps: int, *, sending_computes: bool = False) -> float:
    """Seconds until the first stage has all patches of the last step.

    An event simulation: every stage and every link takes its tasks in order, step by step and patch
    by patch, each as soon as what it waits for is there. A stage waits for the link to it, a link
    for what the stage computed, and the first stage for its own patch of the step before. With
    `sending_computes` a stage computes nothing while it sends.

    Delaying all by the same time delays all that follows by it. So once a step repeats the one
    before, only later, all others do, and what is left is counted and not simulated.
    """
    if durations.back_s:
        return _Fold(durations, sending_computes).seconds(steps)
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
        if step > 1 and before is not None and _is_repeated(before, now):
            left_s = (steps - 1 - step) * (now[0] - before[0])
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


class _Fold:
    """The same with the folded schedule, in which all stages but the last take a patch on its way
    there and an earlier one on its way back in turns.

    Patches are numbered through all steps.
    """

    def __init__(self, durations: Durations, sending_computes: bool) -> None:
        self._durations, self._sending_computes = durations, sending_computes
        stages, self._patches = len(durations.stage_s), len(durations.between_s)
        self._last = stages - 1
        self._most = [most_underway(stage, stages, self._patches) for stage in range(stages)]
        self._free, self._there, self._back = [0.0] * stages, [0.0] * stages, [0.0] * stages
        # when patches are back at a stage, and when predictions are made
        self._arrived = [[0.0] * self._patches for _ in range(self._last)]
        self._ended = [0.0] * self._patches

    def seconds(self, steps: int) -> float:
        """As `pipeline_s`."""
        number, total, left_s = 0, steps * self._patches, 0.0
        before: list[float] | None = None
        while number < total + self._most[0] - 1:
            if number < total:
                self._go_there(number)
            for stage in range(self._last - 1, -1, -1):
                if 0 <= number - self._most[stage] + 1 < total:
                    self._come_back(stage, (number - self._most[stage] + 1) % self._patches)
            number += 1
            if number <= total and number % self._patches == 0:
                now = self._times()
                if number > 2 * self._patches and before and _is_repeated(before, now):
                    left_s = (total - number) // self._patches * (now[0] - before[0])
                    total = number
                before = now
        return _received(self._free[0], self._ended, self._durations.between_s) + left_s

    def _go_there(self, number: int) -> None:
        """A patch to the last stage, and from it to the one before."""
        patch, ready = number % self._patches, 0.0
        if number >= self._patches:
            ready = max(self._free[0], self._ended[patch]) + self._durations.between_s[patch]
        for stage, of_stage in enumerate(self._durations.stage_s[:-1]):
            ready = self._passed_on(stage, patch, ready, of_stage[patch], self._there, stage)
        last, task_s = self._last, self._durations.stage_s[-1][patch]
        ready = self._passed_on(last, patch, ready, task_s, self._back, last - 1)
        self._arrived[last - 1][patch] = ready

    def _come_back(self, stage: int, patch: int) -> None:
        ready, task_s = self._arrived[stage][patch], self._durations.back_s[stage][patch]
        if stage:
            ready = self._passed_on(stage, patch, ready, task_s, self._back, stage - 1)
            self._arrived[stage - 1][patch] = ready
        else:
            self._free[0] = self._ended[patch] = max(ready, self._free[0]) + task_s

    def _passed_on(
        self, stage: int, patch: int, ready: float, task_s: float, links: list[float], to: int
    ) -> float:
        """When a patch that is ready for a stage is at the end of a link."""
        done = max(ready, self._free[stage]) + task_s
        links[to] = max(done, links[to]) + self._durations.hop_s[to][patch]
        self._free[stage] = links[to] if self._sending_computes else done
        return links[to]

    def _times(self) -> list[float]:
        of_links = [*self._there[: self._last], *self._back[: self._last]]
        return [*self._free, *of_links, *self._ended, *(s for row in self._arrived for s in row)]


def _is_repeated(before: Sequence[float], now: Sequence[float]) -> bool:
    """Whether a step ended as the one before, only later."""
    period_s = now[0] - before[0]
    return all(
        abs(b - a - period_s) <= SAME_RATE * period_s for a, b in zip(before, now, strict=True)
    )


def _received(free_s: float, returned: Sequence[float], between_s: Sequence[float]) -> float:
    """When the first stage, free at a time, has taken in the last patch."""
    for at_s, then_s in zip(returned, between_s, strict=True):
        free_s = max(free_s, at_s) + then_s
    return free_s
