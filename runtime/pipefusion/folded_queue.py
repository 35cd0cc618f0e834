"""In which order a stage of the folded schedule takes what comes by it twice.

It takes a patch on its way there and an earlier one on its way back in turns, with `most_underway`
of them behind it. As that number falls along the stages, whatever a stage waits for comes earlier
in the order of the stage that sends it, and a link never has a patch's tensors on their way twice.
"""

from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

from ditplan.profiles.folded_schedule import most_underway

Underway = TypeVar("Underway")
"""Whatever stands for a patch that has come by and will come by again."""


class FoldedQueue(Generic[Underway]):
    """What has come by a stage and will come by again, in the order in which it came."""

    def __init__(self, stage: int, stages: int, patches: int) -> None:
        self._most = most_underway(stage, stages, patches)
        self._underway: deque[Underway] = deque()

    def add(self, underway: Underway) -> None:
        """Takes in what has just come by for the first time."""
        self._underway.append(underway)

    def due(self) -> Iterator[Underway]:
        """Takes out what this stage has to take on its way back before anything new."""
        while len(self._underway) >= self._most:
            yield self._underway.popleft()

    def drain(self) -> Iterator[Underway]:
        """Takes out everything, one after the other."""
        while self._underway:
            yield self._underway.popleft()

    def clear(self) -> None:
        """Forgets what is underway, as it won't come by again."""
        self._underway.clear()
