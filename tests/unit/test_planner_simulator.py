"""The event simulation against a clock that ticks, textbook schedules, and what can't be."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditplan.planner.simulation.simulator import Row, SimTask, Span, simulate

ROWS = tuple(Row("rank", str(number)) for number in range(4))


@st.composite
def tasks_in_order(draw: st.DrawFn) -> list[SimTask]:
    """Tasks in whole seconds that wait for some of those listed before them."""
    tasks: list[SimTask] = []
    for place in range(draw(st.integers(1, 14))):
        rows = draw(st.lists(st.sampled_from(ROWS), unique=True, min_size=1, max_size=3))
        earlier = st.lists(st.integers(0, place - 1), unique=True, max_size=3)
        after = tuple(draw(earlier)) if place else ()
        tasks.append(task(draw(st.integers(0, 5)), *rows, after=after))
    return tasks


def task(seconds: float, *rows: Row, after: tuple[int, ...] = ()) -> SimTask:
    return SimTask("some", "compute", rows, float(seconds), after)


def end_s(tasks: Sequence[SimTask]) -> float:
    return max(span.end_s for span in simulate(tasks))


def by_a_clock(tasks: Sequence[SimTask]) -> list[Span]:
    """An independent count: at each tick, what is first on all its rows and waits for nothing
    begins, over and over till nothing more does.
    """
    queues = {row: [p for p, one in enumerate(tasks) if row in one.rows] for row in ROWS}
    spans: dict[int, Span] = {}
    for now in range(200):
        changed = True
        while changed:
            changed = False
            for place, one in enumerate(tasks):
                ended = {p for p, span in spans.items() if span.end_s <= now}
                first = all(
                    next((p for p in queues[row] if p not in ended), None) == place
                    for row in one.rows
                )
                if place not in spans and first and ended.issuperset(one.after):
                    spans[place] = Span(now, now + one.duration_s)
                    changed = True
    return [spans[place] for place in range(len(tasks))]


@settings(max_examples=120)
@given(tasks=tasks_in_order())
def test_tasks_begin_and_end_as_on_a_ticking_clock(tasks: list[SimTask]) -> None:
    assert simulate(tasks) == by_a_clock(tasks)


@given(tasks=tasks_in_order())
def test_nothing_ends_before_its_longest_chain_and_its_busiest_row(tasks: list[SimTask]) -> None:
    chain_s: list[float] = []
    for one in tasks:
        chain_s.append(one.duration_s + max((chain_s[p] for p in one.after), default=0.0))
    busy_s = [sum(one.duration_s for one in tasks if row in one.rows) for row in ROWS]
    assert end_s(tasks) >= max(*chain_s, *busy_s)


@given(tasks=tasks_in_order(), data=st.data())
def test_a_faster_task_and_a_row_of_its_own_never_make_anything_later(
    tasks: list[SimTask], data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(tasks) - 1))
    faster, freer = list(tasks), list(tasks)
    faster[place] = replace(tasks[place], duration_s=tasks[place].duration_s / 2)
    freer[place] = replace(tasks[place], rows=(Row("rank", "one more"),))
    before = simulate(tasks)
    for changed in (faster, freer):
        pairs = zip(simulate(changed), before, strict=True)
        assert all(now.end_s <= then.end_s for now, then in pairs)


@given(tasks=tasks_in_order())
def test_the_same_tasks_always_give_the_same_spans(tasks: list[SimTask]) -> None:
    otherwise = [
        replace(one, after=tuple(reversed(one.after)), rows=tuple(reversed(one.rows)))
        for one in tasks
    ]
    assert simulate(tasks) == simulate(tasks) == simulate(otherwise)


@pytest.mark.parametrize("stages", [1, 2, 4])
@pytest.mark.parametrize("patches", [1, 3, 16])
def test_filling_and_draining_equal_stages_leaves_the_textbook_bubble(
    stages: int, patches: int
) -> None:
    """GPipe (arXiv 1811.06965), section 2.3: (p - 1) / (m + p - 1) of the time."""
    tasks = [
        task(1, ROWS[stage], after=((patch * stages + stage - 1),) if stage else ())
        for patch in range(patches)
        for stage in range(stages)
    ]
    idle = 1 - patches / end_s(tasks)
    assert idle == pytest.approx((stages - 1) / (patches + stages - 1))


def test_two_transfers_over_one_link_take_twice_as_long_as_over_two() -> None:
    shared, others = Row("link", "shared"), (Row("link", "a"), Row("link", "b"))
    assert end_s([task(3, shared), task(3, shared)]) == 2 * end_s([task(3, row) for row in others])


def test_a_task_may_wait_for_one_that_is_listed_later() -> None:
    tasks = [task(1, ROWS[0], after=(1,)), task(2, ROWS[1])]
    assert simulate(tasks) == [Span(2.0, 3.0), Span(0.0, 2.0)]


def test_no_tasks_take_no_time() -> None:
    assert simulate([]) == []


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        ([task(1, ROWS[0], after=(1,)), task(1, ROWS[1], after=(0,))], "never begin: 2, such as"),
        ([task(1, ROWS[0], after=(1,)), task(1, ROWS[0])], "never begin: 2, such as"),
        ([task(1, ROWS[0], after=(0,))], "wait for each other and never begin: 1, such as 'some'"),
        ([task(1, ROWS[0], after=(2,))], "waits for number 2, there are 1 tasks"),
        ([task(1, ROWS[0]), task(1, ROWS[0], after=(-1,))], "waits for number -1"),
        ([task(-1, ROWS[0])], "takes -1.0 s"),
        ([task(math.nan, ROWS[0])], "takes nan s"),
        ([task(math.inf, ROWS[0])], "takes inf s"),
    ],
)
def test_what_cannot_be_simulated_is_refused(tasks: list[SimTask], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        simulate(tasks)
