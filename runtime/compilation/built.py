"""How much was compiled and captured for a transformer, and how much of it is to be kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import nn


@dataclass
class Built:
    """What plans have compiled and captured for a transformer in this process.

    `compilations` counts graphs of code that were compiled, `captures` CUDA graphs, `weight_moves`
    how often weights were brought together for compiled code; each of `watchers` is told which. At
    least `shapes` shapes of calls keep what was made for each.
    """

    compilations: int = 0
    captures: int = 0
    weight_moves: int = 0
    watchers: list[Callable[[Sequence[nn.Parameter]], None]] = field(default_factory=list)
    shapes: int = 0

    def at_least(self, shapes: int) -> None:
        """Has so many shapes of calls keep what was made for each."""
        self.shapes = max(self.shapes, shapes)

    def add_shapes(self, shapes: int) -> None:
        """Has so many more keep theirs."""
        self.shapes += shapes

    def note_moved(self, weights: Sequence[nn.Parameter]) -> None:
        """Counts that these now lie elsewhere, and tells so."""
        self.weight_moves += 1
        for tell in self.watchers:
            tell(weights)
