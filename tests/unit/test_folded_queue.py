"""The order in which stages of the folded schedule take patches, against a count without queues."""

from collections.abc import Sequence
from itertools import product

import pytest

from ditplan.runtime.pipefusion.folded_queue import FoldedQueue

STEPS = 6
THERE, BACK = 0, 1

Turn = tuple[int, int, int]
"""On the way there or back, and of which step and patch."""


def turns_of_queue(stage: int, stages: int, patches: int) -> list[Turn]:
    """What a stage takes one after the other, as its predictor asks the queue."""
    queue = FoldedQueue[tuple[int, int]](stage, stages, patches)
    turns: list[Turn] = []
    for step, patch in product(range(STEPS), range(patches)):
        turns.append((THERE, step, patch))
        queue.add((step, patch))
        turns += [(BACK, *underway) for underway in queue.due()]
    return turns + [(BACK, *underway) for underway in queue.drain()]


def turns_with(most: int, patches: int) -> list[Turn]:
    """A stage's turns that begins with `most` patches, then takes back and sends out in turns."""
    every = list(product(range(STEPS), range(patches)))
    turns: list[Turn] = [(THERE, *each) for each in every[: most - 1]]
    for back, there in zip(every, every[most - 1 :], strict=False):
        turns += [(THERE, *there), (BACK, *back)]
    return turns + [(BACK, *each) for each in every[len(every) - most + 1 :]]


def needed(stage: int, last: int, turn: Turn) -> tuple[int, Turn] | None:
    """Which stage must have taken which turn before this one: it sends what is wanted."""
    way, step, patch = turn
    if way == BACK:
        return stage + 1, (BACK if stage + 1 < last else THERE, step, patch)
    if stage:
        return stage - 1, (THERE, step, patch)
    return (0, (BACK, step - 1, patch)) if step else None


def last_turn_ends(limits: Sequence[int], patches: int) -> int | None:
    """When all is done if a visit takes a unit of time and the last stage's, of as many blocks, two
    and transport none; None if stages wait for each other for ever.
    """
    last = len(limits)
    turns = [turns_with(most, patches) for most in limits]
    turns.append([(THERE, *each) for each in product(range(STEPS), range(patches))])
    ends: dict[tuple[int, Turn], int] = {}
    free, left = [0] * (last + 1), [list(reversed(of_stage)) for of_stage in turns]
    going_on = True
    while going_on:
        going_on = False
        for stage, todo in enumerate(left):
            while todo:
                before = needed(stage, last, todo[-1])
                if before is not None and before not in ends:
                    break
                arrived = ends[before] if before else 0
                free[stage] = max(free[stage], arrived) + (2 if stage == last else 1)
                ends[stage, todo.pop()] = free[stage]
                going_on = True
    return None if any(left) else max(free)


@pytest.mark.parametrize(("stages", "patches"), [(2, 2), (2, 5), (3, 3), (3, 5), (4, 4), (4, 5)])
def test_as_few_patches_are_underway_as_keep_the_pipeline_fastest(
    stages: int, patches: int
) -> None:
    every = list(product(range(1, patches + 1), repeat=stages - 1))
    ends = {limits: end for limits in every if (end := last_turn_ends(limits, patches)) is not None}
    fastest = [limits for limits, end in ends.items() if end == min(ends.values())]
    fewest = tuple(min(of_stage) for of_stage in zip(*fastest, strict=True))
    assert fewest in fastest
    for stage, most in enumerate(fewest):
        assert turns_of_queue(stage, stages, patches) == turns_with(most, patches)


@pytest.mark.parametrize(("stages", "patches"), list(product(range(2, 6), range(1, 7))))
def test_stages_never_wait_for_each_other_and_a_link_carries_a_patch_once(
    stages: int, patches: int
) -> None:
    last = stages - 1
    turns = [turns_of_queue(stage, stages, patches) for stage in range(last)]
    turns.append([(THERE, *each) for each in product(range(STEPS), range(patches))])
    for slow in range(stages):
        done: set[tuple[int, Turn]] = set()
        left = [list(reversed(of_stage)) for of_stage in turns]
        while any(left):
            wanted = [
                needed(stage, last, todo[-1]) if todo else None for stage, todo in enumerate(left)
            ]
            able = [
                stage
                for stage, before in enumerate(wanted)
                if left[stage] and (before is None or before in done)
            ]
            # so that as much as can be is on its way to the slow one
            stage = min(able, key=lambda one: (one == slow, one))
            done.add((stage, left[stage].pop()))
            sent = [
                before
                for turn in left[slow]
                if (before := needed(slow, last, turn)) in done and before[0] != slow
            ]
            assert len({(source, patch) for source, (_, _, patch) in sent}) == len(sent)


def takes_and_sends(stage: int, stages: int, patches: int) -> list[tuple[str, int, Turn]]:
    """What a stage takes from other stages and sends to them, in its order."""
    last = stages - 1
    turns = turns_of_queue(stage, stages, patches)
    if stage == last:
        turns = [(THERE, *each) for each in product(range(STEPS), range(patches))]
    done: list[tuple[str, int, Turn]] = []
    for turn in turns:
        way, step, patch = turn
        before = needed(stage, last, turn)
        if before is not None and before[0] != stage:
            done.append(("take", before[0], turn))
        if way == THERE and stage < last:
            done.append(("send", stage + 1, turn))
        elif stage:
            done.append(("send", stage - 1, (BACK, step, patch)))
    return done


@pytest.mark.parametrize("room", [1, 2, 4])
@pytest.mark.parametrize(("stages", "patches"), list(product(range(2, 6), range(1, 7))))
def test_stages_that_wait_for_room_on_a_link_never_wait_for_ever(
    stages: int, patches: int, room: int
) -> None:
    """Whoever is slow, and however few visits a link carries at once."""
    for slow in range(stages):
        left = [takes_and_sends(stage, stages, patches)[::-1] for stage in range(stages)]
        links: dict[tuple[int, int], list[Turn]] = {}
        while any(left):
            able = []
            for stage, todo in enumerate(left):
                for what, other, _ in todo[-1:]:
                    way = (other, stage) if what == "take" else (stage, other)
                    underway = len(links.setdefault(way, []))
                    if (what == "take" and underway) or (what == "send" and underway < room):
                        able.append(stage)
            stage = min(able, key=lambda one: (one == slow, one))
            what, other, turn = left[stage].pop()
            if what == "send":
                links[stage, other].append(turn)
            else:
                # what was sent first is what the other end takes next
                assert links[other, stage].pop(0)[1:] == turn[1:]


def test_what_is_forgotten_does_not_come_back() -> None:
    queue = FoldedQueue[str](0, 3, 3)
    queue.add("first")
    queue.clear()
    assert list(queue.drain()) == []
