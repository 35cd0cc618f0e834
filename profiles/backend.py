"""What a backend is: the one interface between a plan and the runtime that carries it out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from ditplan.profiles.capabilities import Capabilities
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.cost_constants import CostConstants
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import ExecutionPlan
from ditplan.profiles.workload import Workload


@dataclass(frozen=True)
class Exported:
    """A file or command of another tool; `not_expressed` says what of the plan it can't hold."""

    to: str
    text: str
    not_expressed: tuple[str, ...]


@dataclass(frozen=True)
class Prepared:
    """A pipeline under a plan, and how the plan is taken away again.

    `pipeline` is called as a diffusers pipeline: the one that was given, changed in place, or one
    of the backend's around it. After `close()` the pipeline that was given is what it was, bit for
    bit, and nothing of the plan is left on it; closing again does nothing.
    """

    pipeline: Any
    close: Callable[[], None]


@runtime_checkable
class Backend(Protocol):
    """A runtime of plans, found by the entry point group `ditplan.backends`.

    An entry point names an object of a module that imports neither torch nor the engine: the
    planner asks it, on machines that have none of them. It keeps nothing between calls; what a plan
    in force needs belongs to the `Prepared` that is given back.
    """

    def capabilities(self) -> Capabilities:
        """What it can run; its name is that of the entry point. Asked once in a process."""
        ...

    def costs(self) -> CostConstants:
        """What it costs, with an entry in `modes` for each mode that it has. Asked once."""
        ...

    def why_unsupported(
        self, configuration: Configuration, model: ModelSpec, workload: Workload
    ) -> str | None:
        """Why it can't run a configuration of a model: one sentence with what would be right; None
        if it can.

        The whole of what this backend refuses: `Capabilities.why_unsupported`, then what data can't
        say. What no backend can do, such as more ranks than heads, the planner knows. It is asked
        of each candidate, so it is quick, and again before ranks are started.
        """
        ...

    def prepare(self, pipeline: Any, plan: ExecutionPlan, context: Any) -> Prepared:
        """Puts a plan in force on a diffusers pipeline that lies on the rank's device.

        Every rank of the world calls it, in the same order, with torch.distributed set up; those
        beyond the plan's placement take part in making groups and are left alone. `context` is the
        rank's `ditplan.runtime.groups.RankContext`: rank, world size, device, groups. The engine is
        imported here.

        Raises:
            InputError: the engine isn't installed, or the plan isn't for this pipeline or world;
                says what would be right. The pipeline is what it was.
        """
        ...

    def emit(self, plan: ExecutionPlan, file: str) -> Exported:
        """A plan, read from a file of this name, in the words by which the backend is started.

        Raises:
            InputError: they can't say it, or there are none.
        """
        ...


@runtime_checkable
class Choosing(Protocol):
    """What a backend has besides whose engine chooses a mesh where none is given."""

    def own_choice(self, model: ModelSpec, workload: Workload, gpus: int) -> Mesh | None:
        """The mesh that the engine takes of so many GPUs; None where it always has to be told."""
        ...
