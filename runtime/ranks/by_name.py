"""A function that ranks find by its name: whoever sends it needn't import what it needs."""

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ditplan.runtime.groups import RankContext


@dataclass(frozen=True)
class ByName:
    """The function `name` at the top level of `module`."""

    module: str
    name: str

    def __call__(self, context: "RankContext", *args: Any, **kwargs: Any) -> Any:
        """Calls it, on a rank."""
        return getattr(import_module(self.module), self.name)(context, *args, **kwargs)

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"
