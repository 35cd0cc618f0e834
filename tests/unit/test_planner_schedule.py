"""PipeFusion's schedule and stages against countings of their own."""

import heapq
import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditplan.planner.pipefusion.partition import AS_FAST, balanced_stages
from ditplan.planner.pipefusion.schedule import Durations, pipeline_s
from ditplan.planner.space.stage_blocks import folded, runs_of_stages, unfolded
from ditplan.profiles.catalog import find_model
from ditplan.profiles.configuration import PipeFusion

SECONDS = st.integers(0, 12).map(float)


@st.composite
def pipelines(draw: st.DrawFn) -> Durations:
    """Small pipelines in whole seconds, so that sums are exact."""
    stages, patches = draw(st.integers(2, 4)), draw(st.integers(1, 5))
    row = st.lists(SECONDS, min_size=patches, max_size=patches)
    rows = st.lists(row, min_size=stages, max_size=stages)
    return Durations(draw(rows), draw(rows), draw(row))


def uniform(stages: int, patches: int, task_s: float, hop_s: float = 0.0) -> Durations:
    """A pipeline in which all tasks take the same time, and so do all transfers."""
    return Durations([[task_s] * patches] * stages, [[hop_s] * patches] * stages, [0.0] * patches)


Task = tuple[str, int, int, int]
Place = tuple[str, int]


class Events:
    """An independent count: tasks that wait for others, worked off from an event queue.

    Every stage and link has a list of its tasks in order; a task starts when it is the first of its
    list and all that it needs has ended.
    """

    def __init__(self) -> None:
        self._needs: dict[Task, list[Task]] = {}
        self._takes: dict[Task, float] = {}
        self._queues: dict[Place, list[Task]] = {}

    def add(self, task: Task, on: Place, seconds: float, *after: Task) -> None:
        self._takes[task], self._needs[task] = seconds, list(after)
        self._queues.setdefault(on, []).append(task)

    def end(self) -> float:
        """When all have ended."""
        queues, ended = self._queues, set[Task]()
        idle, now = set(queues), 0.0
        events: list[tuple[float, int, Task, Place]] = []
        count = itertools.count()

        def start_what_can() -> None:
            for on in sorted(idle):
                if queues[on] and ended.issuperset(self._needs[queues[on][0]]):
                    first = queues[on].pop(0)
                    idle.discard(on)
                    heapq.heappush(events, (now + self._takes[first], next(count), first, on))

        start_what_can()
        while events:
            now, _, done, place = heapq.heappop(events)
            ended.add(done)
            idle.add(place)
            start_what_can()
        assert not any(queues.values())
        return now


def by_events(durations: Durations, steps: int) -> float:
    """The linear schedule's end."""
    stages, patches = len(durations.stage_s), len(durations.between_s)
    events = Events()
    add = events.add
    for step, patch in itertools.product(range(steps + 1), range(patches)):
        if step:
            sent_back = ("send", step - 1, patch, stages - 1)
            add(("between", step, patch, 0), ("stage", 0), durations.between_s[patch], sent_back)
        if step == steps:
            continue
        for stage in range(stages):
            before = [("send", step, patch, stage - 1)] if stage else []
            task = ("compute", step, patch, stage)
            add(task, ("stage", stage), durations.stage_s[stage][patch], *before)
            send_s = durations.hop_s[stage][patch]
            add(("send", step, patch, stage), ("link", stage), send_s, task)
    return events.end()


def folded_by_events(durations: Durations, steps: int) -> float:
    """The folded schedule's end: a stage takes a visit there, and when as many patches are behind
    it as there are stages from it on, the visit back of the one that came by first.
    """
    stages, patches = len(durations.stage_s), len(durations.between_s)
    last, events = stages - 1, Events()
    for stage in range(stages):
        behind: list[tuple[int, int]] = []

        def come_back(stage: int = stage, behind: list[tuple[int, int]] = behind) -> None:
            step, patch = behind.pop(0)
            back: Task = ("back", step, patch, stage)
            came = ("back link", step, patch, stage)
            events.add(back, ("stage", stage), durations.back_s[stage][patch], came)
            if stage:
                sent = ("back link", step, patch, stage - 1)
                seconds = durations.hop_s[stage - 1][patch]
                events.add(sent, ("back link", stage - 1), seconds, back)

        for step, patch in itertools.product(range(steps), range(patches)):
            if step and not stage:
                own = ("back", step - 1, patch, 0)
                events.add(
                    ("between", step, patch, 0), ("stage", 0), durations.between_s[patch], own
                )
            before = [("link", step, patch, stage - 1)] if stage else []
            there: Task = ("there", step, patch, stage)
            events.add(there, ("stage", stage), durations.stage_s[stage][patch], *before)
            way, at = ("link", stage) if stage < last else ("back link", last - 1)
            events.add((way, step, patch, at), (way, at), durations.hop_s[at][patch], there)
            if stage < last:
                behind.append((step, patch))
                if len(behind) >= min(stages - stage, patches):
                    come_back()
        while behind:
            come_back()
    for patch in range(patches):
        own = ("back", steps - 1, patch, 0)
        events.add(("between", steps, patch, 0), ("stage", 0), durations.between_s[patch], own)
    return events.end()


@st.composite
def folds(draw: st.DrawFn) -> Durations:
    """The same with the folded schedule."""
    linear = draw(pipelines())
    patches, stages = len(linear.between_s), len(linear.stage_s)
    row = st.lists(SECONDS, min_size=patches, max_size=patches)
    back = draw(st.lists(row, min_size=stages - 1, max_size=stages - 1))
    return replace(linear, hop_s=linear.hop_s[:-1], back_s=back)


@settings(max_examples=150)
@given(durations=folds(), steps=st.integers(1, 9))
def test_the_folded_schedule_ends_when_an_event_queue_ends(
    durations: Durations, steps: int
) -> None:
    expected = folded_by_events(durations, steps)
    assert pipeline_s(durations, steps) == pytest.approx(expected)


def test_a_folded_pipeline_keeps_all_stages_busy() -> None:
    """Half a second each way, a second on the last stage: a fill of half seconds, and at the end
    the way back.
    """
    row = [0.5] * 8
    durations = Durations([row, row, row, [1.0] * 8], [[0.0] * 8] * 3, [0.0] * 8, [row] * 3)
    assert pipeline_s(durations, 20) == pytest.approx(20 * 8 + 3 * 0.5 + 3 * 0.5)


@settings(max_examples=150)
@given(durations=pipelines(), steps=st.integers(1, 9))
def test_the_schedule_ends_when_an_event_queue_ends(durations: Durations, steps: int) -> None:
    assert pipeline_s(durations, steps) == pytest.approx(by_events(durations, steps))


@pytest.mark.parametrize("stages", [2, 3, 8])
@pytest.mark.parametrize("more", [0, 1, 7])
@pytest.mark.parametrize("steps", [1, 2, 3, 27])
def test_equal_stages_without_links_take_all_patches_and_a_fill(
    stages: int, more: int, steps: int
) -> None:
    patches = stages + more
    fill_s = (stages - 1) * 0.25
    expected = steps * patches * 0.25 + fill_s
    assert pipeline_s(uniform(stages, patches, 0.25), steps) == pytest.approx(expected)


def test_with_fewer_patches_than_stages_each_step_takes_a_whole_round() -> None:
    assert pipeline_s(uniform(8, 2, 1.0), 10) == pytest.approx(10 * 8 + 1)


def test_transfers_hide_behind_computing_unless_links_are_slower_than_stages() -> None:
    hidden = pipeline_s(uniform(4, 16, 1.0, 0.5), 10)
    assert hidden == pytest.approx(10 * 16 + 3 * 1.5 + 0.5)
    assert pipeline_s(uniform(4, 16, 1.0, 3.0), 10) == pytest.approx(10 * 16 * 3 + 3 * (1 + 3) + 1)


def test_two_stages_two_patches_by_hand() -> None:
    """Stage 0 computes 1 s and 2 s, stage 1 3 s and 1 s, 1 s between steps, links 1 s.

    Patch 0: stage 0 until 1, link until 2, stage 1 until 5, back at 6. Patch 1: stage 0 until 3,
    link until 4, stage 1 from 5 until 6, back at 7. Then 1 s each: until 7, until 8.
    """
    durations = Durations([[1, 2], [3, 1]], [[1, 1], [1, 1]], [1, 1])
    assert pipeline_s(durations, 1) == 8
    # patch 0 again from 6: between until 7, computed until 8, there at 9, done at 12, back at 13;
    # patch 1 from 8: computed until 11, there at 12, done at 13, back at 14; then until 14 and 15
    assert pipeline_s(durations, 2) == 15


def test_a_stage_that_sends_itself_computes_nothing_meanwhile() -> None:
    durations = uniform(2, 4, 1.0, 0.5)
    overlapped = pipeline_s(durations, 5)
    assert pipeline_s(durations, 5, sending_computes=True) > overlapped
    free = durations.with_free_links
    assert pipeline_s(free, 5, sending_computes=True) == pipeline_s(free, 5)


@settings(max_examples=60)
@given(durations=pipelines(), steps=st.integers(3, 400))
def test_counting_on_from_a_steady_step_is_exact(durations: Durations, steps: int) -> None:
    """Most long runs end by counting; an event queue simulates each of their steps."""
    assert pipeline_s(durations, steps) == pytest.approx(by_events(durations, steps), rel=1e-9)


@given(durations=pipelines(), steps=st.integers(1, 6), factor=st.floats(1, 3))
def test_slower_links_never_help(durations: Durations, steps: int, factor: float) -> None:
    slower = Durations(
        durations.stage_s,
        [[factor * hop_s for hop_s in row] for row in durations.hop_s],
        durations.between_s,
    )
    assert pipeline_s(slower, steps) >= pipeline_s(durations, steps) - 1e-9


@st.composite
def divisions(draw: st.DrawFn) -> tuple[list[float], list[float], int, tuple[float, float]]:
    blocks = draw(st.integers(1, 9))
    amounts = st.lists(st.integers(1, 9).map(float), min_size=blocks, max_size=blocks)
    extra_s = draw(st.tuples(SECONDS, SECONDS))
    return draw(amounts), draw(amounts), draw(st.integers(1, blocks)), extra_s


def all_divisions(blocks: int, stages: int) -> list[tuple[int, ...]]:
    """Every way to cut blocks into consecutive stages."""
    cuts = itertools.combinations(range(1, blocks), stages - 1)
    return [tuple(b - a for a, b in itertools.pairwise((0, *places, blocks))) for places in cuts]


def sums(amounts: list[float], counts: tuple[int, ...]) -> list[float]:
    """The amounts of each stage."""
    ends = list(itertools.accumulate(counts))
    return [sum(amounts[end - count : end]) for end, count in zip(ends, counts, strict=True)]


@settings(max_examples=300)
@given(case=divisions(), least_s=SECONDS, room=st.integers(1, 40).map(float))
def test_stages_equal_the_best_of_all_divisions(
    case: tuple[list[float], list[float], int, tuple[float, float]], least_s: float, room: float
) -> None:
    seconds, sizes, stages, extra_s = case

    def slowest(counts: tuple[int, ...]) -> float:
        taken = [max(least_s, stage_s) for stage_s in sums(seconds, counts)]
        taken[0] += extra_s[0]
        taken[-1] += extra_s[1]
        return max(taken)

    def largest(counts: tuple[int, ...]) -> float:
        return max(sums(sizes, counts))

    every = all_divisions(len(seconds), stages)
    fitting = [counts for counts in every if largest(counts) <= room]
    found = balanced_stages(seconds, sizes, stages, extra_s=extra_s, least_s=least_s, room=room)
    assert sum(found) == len(seconds)
    assert len(found) == stages
    assert min(found) >= 1
    if fitting:
        best_s = min(map(slowest, fitting))
        as_fast = [counts for counts in every if slowest(counts) <= AS_FAST * best_s]
        assert found in as_fast
        assert largest(found) == min(map(largest, as_fast))
    else:
        assert largest(found) == min(map(largest, every))


@given(case=divisions())
def test_the_first_stages_are_divided_as_well_as_they_can_be(
    case: tuple[list[float], list[float], int, tuple[float, float]],
) -> None:
    _, sizes, stages, _ = case
    counts = balanced_stages([1.0] * len(sizes), sizes, stages, least_s=len(sizes))
    for first in range(1, stages + 1):
        blocks = sum(counts[:first])
        every = all_divisions(blocks, first)
        best = min(max(sums(sizes[:blocks], tried)) for tried in every)
        assert max(sums(sizes[:blocks], counts[:first])) == best


@given(st.lists(SECONDS, min_size=3, max_size=12), st.data())
def test_blocks_are_divided_with_their_mirrors(seconds: list[float], data: st.DataObject) -> None:
    pairs = folded(seconds)
    assert sum(pairs) == sum(seconds)
    stages = data.draw(st.integers(2, len(pairs)))
    counts = balanced_stages(pairs, pairs, stages)
    blocks = unfolded(counts, len(seconds))
    part = PipeFusion(blocks_per_stage=blocks, patches=1, warmup_steps=1, schedule="folded")
    first = 0
    for stage, count in enumerate(counts):
        held = [block for visit in part.visits(stage) for block in visit]
        assert sum(seconds[block] for block in held) == sum(pairs[first : first + count])
        first += count


def test_more_stages_than_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="2 blocks can't make 3 stages"):
        balanced_stages([1.0, 1.0], [1.0, 1.0], 3)


@pytest.mark.parametrize("stages", range(2, 20))
def test_runs_of_stages_are_those_of_a_list_of_blocks(stages: int) -> None:
    blocks = find_model("flux-dev").blocks
    kinds = [number for number, run in enumerate(blocks) for _ in range(run.count)]
    counts = balanced_stages([1.0] * len(kinds), [1.0] * len(kinds), stages)
    expected, first = [], 0
    for count in counts:
        own = kinds[first : first + count]
        expected.append(tuple(own.count(number) for number in range(len(blocks))))
        first += count
    part = PipeFusion(blocks_per_stage=counts, patches=1, warmup_steps=1)
    assert runs_of_stages(blocks, part) == expected
    assert math.ceil(57 / stages) == max(counts)
