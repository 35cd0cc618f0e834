"""Engines that are priced here, and run elsewhere by what is exported for them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ditplan.profiles.backend import Exported, Prepared
from ditplan.profiles.capabilities import Capabilities, require_ranks_to_run_in
from ditplan.profiles.catalog import find_model, model_names
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.cost_constants import CostConstants
from ditplan.profiles.errors import Command, InputError, Setting
from ditplan.profiles.mesh import AXES, Mesh
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import ExecutionPlan
from ditplan.profiles.workload import Workload

Rules = Callable[[Configuration, ModelSpec, Workload], str | None]
"""What data can't say of what an engine refuses, or would do wrongly without a word."""

Choice = Callable[[ModelSpec, Workload, int], Mesh]
"""What an engine takes of so many GPUs when it isn't told."""


@dataclass(frozen=True)
class ElsewhereBackend:
    """An engine by its data: `words` exports a plan for it; `choice` is None where it always has to
    be told.
    """

    can: Capabilities
    constants: CostConstants
    words: Callable[[ExecutionPlan, str], Exported]
    rules: Rules
    choice: Choice | None = None

    def capabilities(self) -> Capabilities:
        """Its parallelisms and families."""
        return self.can

    def costs(self) -> CostConstants:
        """What its exchanges cost."""
        return self.constants

    def why_unsupported(
        self, configuration: Configuration, model: ModelSpec, workload: Workload
    ) -> str | None:
        """Its own rules, and what it forgets to check."""
        why = self.can.why_unsupported(configuration, model)
        return why or self.rules(configuration, model, workload)

    def prepare(self, pipeline: Any, plan: ExecutionPlan, context: Any) -> Prepared:
        """Refuses to.

        Raises:
            InputError: it runs elsewhere.
        """
        require_ranks_to_run_in(self.can)
        raise AssertionError("it runs elsewhere")

    def emit(self, plan: ExecutionPlan, file: str) -> Exported:
        """A plan in its words, also one that was made for another backend.

        Raises:
            InputError: it would refuse the plan's mesh, or do something else.
        """
        require_same_mesh(self.can, self.rules, plan, file)
        return self.words(plan, file)

    def own_choice(self, model: ModelSpec, workload: Workload, gpus: int) -> Mesh | None:
        """What it takes of so many GPUs when it isn't told."""
        return self.choice(model, workload, gpus) if self.choice else None


def require_same_mesh(can: Capabilities, rules: Rules, plan: ExecutionPlan, file: str) -> None:
    """Refuses to export a plan of a known model whose mesh the engine would refuse, or split
    otherwise: modes, kernels and the like become others, which is told; the mesh doesn't.

    Raises:
        InputError: says why, and how to get another plan.
    """
    if plan.model.name not in model_names():
        return
    model = find_model(plan.model.name)
    degrees = zip(AXES, plan.mesh.degrees, strict=True)
    split = [axis for axis, degree in degrees if degree > 1 and axis in can.axes]
    reasons = [why for axis in split if (why := can.why_not_split(model, axis))]
    if not reasons and (why := rules(plan.configuration, model, plan.workload)):
        reasons.append(why)
    if reasons:
        asked = Setting("model", plan.model.name), Setting("backend", can.name)
        raise InputError(f"{file}: {reasons[0]}; tune for it: `", Command("tune", asked), "`")


def why_not_divided(engine: str, configuration: Configuration, model: ModelSpec) -> str | None:
    """Why heads can't be shared out where an engine needs equal numbers; None if they can."""
    ulysses = configuration.mesh.ulysses
    if model.heads % ulysses == 0:
        return None
    below = next(degree for degree in range(ulysses, 0, -1) if model.heads % degree == 0)
    return (
        f"{engine} needs a ulysses degree that divides the {model.heads} heads of {model.name}, "
        f"and it is {ulysses}; use {below}"
    )


def sequences_of(model: ModelSpec, workload: Workload) -> dict[str, int]:
    """The tokens of each sequence that self-attention sees, by name."""
    lengths = {"image": model.image_tokens(workload), "text": model.text_tokens(workload)}
    return {name: length for name, length in lengths.items() if length}
