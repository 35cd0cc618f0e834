"""How much was compiled and captured for a transformer, and how much of it is to be kept."""

from dataclasses import dataclass


@dataclass
class Built:
    """What plans have compiled and captured for a transformer in this process.

    `compilations` counts graphs of code that were compiled, `captures` CUDA graphs. At least
    `shapes` shapes of calls keep what was made for each.
    """

    compilations: int = 0
    captures: int = 0
    shapes: int = 0

    def at_least(self, shapes: int) -> None:
        """Has so many shapes of calls keep what was made for each."""
        self.shapes = max(self.shapes, shapes)

    def add_shapes(self, shapes: int) -> None:
        """Has so many more keep theirs."""
        self.shapes += shapes
