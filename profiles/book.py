"""A book of plans: one for each workload that a job serves, with how often it comes."""

import math
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from ditplan.profiles.bounds import Weight
from ditplan.profiles.errors import Command, InputError, Setting
from ditplan.profiles.plan import ExecutionPlan
from ditplan.profiles.record import FrozenModel, Record
from ditplan.profiles.workload import Workload

Otherwise = Literal["refuse", "larger"]
ASKED = ("height", "width", "frames", "steps", "batch")
"""What of a workload a request says."""


class BookEntry(FrozenModel):
    """A plan and the weight of its workload among all: any positive number."""

    weight: Weight
    plan: ExecutionPlan

    @property
    def workload(self) -> Workload:
        """What the plan is for."""
        return self.plan.workload


class PlanBook(Record):
    """Plans of one model for different workloads.

    `otherwise` is what becomes of a request for which there is no plan: it is refused, or served by
    the plan for the nearest workload that is larger.
    """

    kind: ClassVar[str] = "plan book"
    made_by: ClassVar[Command] = Command("tune", (Setting("workloads", "FILE"),))
    newest_schema: ClassVar[int] = 2

    schema_version: int = 2
    otherwise: Otherwise = "refuse"
    entries: tuple[BookEntry, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _plans_are_one_model_s_for_different_workloads(self) -> Self:
        if len({entry.plan.model.key for entry in self.entries}) > 1:
            raise ValueError("the plans are for different models; make a book for each")
        if len({entry.workload for entry in self.entries}) < len(self.entries):
            raise ValueError("two plans are for the same workload; leave one out")
        return self

    def plan_for(self, workload: Workload) -> ExecutionPlan:
        """The plan for just this workload.

        Raises:
            InputError: there is none; the message lists those that there are.
        """
        for entry in self.entries:
            if entry.workload == workload:
                return entry.plan
        there_are = "; ".join(str(entry.workload) for entry in self.entries)
        raise InputError(
            f"the book has no plan for {workload}; it has plans for {there_are}: ask for one of "
            "these, or tune with this one in the mix"
        )

    def plan_of_request(
        self, *, height: int, width: int, steps: int, frames: int = 1, batch: int = 1
    ) -> ExecutionPlan:
        """The plan for a request: that for just this size, steps and batch; else, with `otherwise`
        "larger", that for the smallest workload with no less of any of them.

        Raises:
            InputError: there is none; the message lists those that there are.
        """
        asked = (height, width, frames, steps, batch)
        found = {_asked_of(entry.workload): entry.plan for entry in self.entries}
        if asked in found:
            return found[asked]
        larger = [one for one in found if all(map(int.__ge__, one, asked))]
        if larger and self.otherwise == "larger":
            return found[min(larger, key=lambda one: (math.prod(one), one))]
        said = ", ".join(f"{name} {value}" for name, value in zip(ASKED, asked, strict=True))
        there_are = "; ".join(str(entry.workload) for entry in self.entries)
        policy = f'it has "otherwise": "{self.otherwise}"'
        raise InputError(
            f"the book has no plan for {said}, and {policy}; it has plans for {there_are}: ask for "
            "one of these, or tune with this one in the mix"
        )


def _asked_of(workload: Workload) -> tuple[int, ...]:
    return tuple(getattr(workload, name) for name in ASKED)
