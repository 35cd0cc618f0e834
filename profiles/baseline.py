"""What the planner answered at one time, to hold later answers against: files of recorded cases."""

import json
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import Field, JsonValue, PositiveInt, TypeAdapter, model_validator

from ditplan.profiles.bounds import MOST_SECONDS
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.errors import Command, Setting
from ditplan.profiles.mesh import AXES, Mesh, placement_of
from ditplan.profiles.record import NEEDS, FrozenModel, Record

DIGITS = 6
"""Of seconds, so many are kept: sums differ in the last ones from machine to machine."""


def rounded(number: float) -> float:
    """A number with as many digits as are kept."""
    return float(f"{number:.{DIGITS}g}")


class RecordedPlan(FrozenModel):
    """A plan that was priced for a case.

    `cost` is what the objective chose by, in seconds a picture or a call, where that isn't the
    latency. `fits` is false where devices couldn't hold it.
    """

    configuration: Configuration
    latency_s: float = Field(gt=0, le=MOST_SECONDS)
    memory_bytes: PositiveInt
    cost: float | None = Field(default=None, gt=0, le=MOST_SECONDS)
    fits: bool = True

    @property
    def weighed(self) -> float:
        """What the objective chose by."""
        return self.latency_s if self.cost is None else self.cost

    @model_validator(mode="before")
    @classmethod
    def _has_usual_placement(cls, data: Any) -> Any:
        """Ranks lie as follows from the order of the axes, where nothing else is said."""
        found = data.get("configuration") if isinstance(data, dict) else None
        if not isinstance(found, dict) or "placement" in found:
            return data
        mesh, order = Mesh.model_validate(found.get("mesh", {})), found.get("order", AXES)
        if not isinstance(order, list | tuple) or sorted(map(str, order)) != sorted(AXES):
            return data
        placed = found | {"mesh": mesh, "placement": placement_of(mesh, order)}
        return data | {"configuration": placed}

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        if why := self.configuration.why_unsound():
            raise ValueError(why)
        return self


class Answer(FrozenModel):
    """What was planned for a case: the best plan first, then others.

    The first `ranked` are the best ones in order; those behind them are the best of their kind, or
    the first that doesn't fit. `given` is a digest of model and workload. `interval` is half the
    width of the widest 90% interval among the plans, as a share of the latency. `parts` are the
    best plan's seconds by cause. `refused` says why there is no plan, where there is none.
    """

    given: str
    refused: str = ""
    ranked: int = 0
    interval: float = Field(default=0.0, ge=0)
    end_to_end_s: float = 0.0
    setup_s: float = 0.0
    parts: dict[str, float] = Field(default_factory=dict)
    plans: tuple[RecordedPlan, ...] = ()

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        if bool(self.refused) == bool(self.plans):
            raise ValueError("an answer has plans, or says in `refused` why there is none")
        if not 0 <= self.ranked <= len(self.plans):
            raise ValueError(f"{self.ranked} of {len(self.plans)} plans can't be ranked")
        return self


class RecordedCase(FrozenModel):
    """A question, by the names of `ditplan.plan`'s settings, and its answer once there is one."""

    model: str
    asked: dict[str, JsonValue] = Field(default_factory=dict)
    answer: Answer | None = None

    @property
    def name(self) -> str:
        """Such as `sd3 height=512 gpus=4`."""
        settings = (f"{name}={value}" for name, value in self.asked.items())
        return " ".join([self.model, *settings])


class Baseline(Record):
    """Recorded cases of one cluster: a shipped one's name, or a file beside this one."""

    kind: ClassVar[str] = "baseline"
    made_by: ClassVar[Command] = Command(
        "check", (Setting("baseline", "DIR"), Setting("update", True))
    )

    cluster: str
    given: str = ""
    cases: tuple[RecordedCase, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _cases_differ(self) -> Self:
        names = [case.name for case in self.cases]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"the case {twice!r} stands twice; leave one out")
        return self

    def text(self) -> str:
        """A line for each question and each plan, so that a change can be read. The same answers
        give the same bytes, wherever they were found.
        """
        cases = ",\n".join(map(_case_text, self.cases))
        head = {"schema_version": self.schema_version, NEEDS: self.since}
        head |= {"cluster": self.cluster, "given": self.given}
        return f'{_line(head)[:-1]}, "cases": [\n{cases}\n]}}\n'


CONFIGURATION = TypeAdapter(Configuration)


def plain_configuration(configuration: Configuration) -> dict[str, Any]:
    """A configuration's fields without those that say the usual."""
    found: dict[str, Any] = CONFIGURATION.dump_python(
        configuration, mode="json", exclude_defaults=True
    )
    if configuration.follows_order:
        del found["placement"]
    return found


def _case_text(case: RecordedCase) -> str:
    head: dict[str, Any] = {"model": case.model, "asked": case.asked}
    answer = case.answer
    if answer is None:
        return f" {_line(head)}"
    said = answer.model_dump(mode="json", exclude_defaults=True, exclude={"plans"})
    opening = f' {_line(head)[:-1]},\n  "answer": {_line(said)[:-1]}'
    if not answer.plans:
        return f"{opening}}}}}"
    plans = ",\n".join(f"   {_line(_plain_plan(plan))}" for plan in answer.plans)
    return f'{opening}, "plans": [\n{plans}]}}}}'


def _plain_plan(plan: RecordedPlan) -> dict[str, Any]:
    rest = plan.model_dump(mode="json", exclude_defaults=True, exclude={"configuration"})
    return {"configuration": plain_configuration(plan.configuration), **rest}


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False)


class Forecast(FrozenModel):
    """What is predicted of a measured plan: with the model's blocks measured, and computed without
    them; and the memory that its loop holds.
    """

    plan: str
    predicted_s: float = Field(gt=0, le=MOST_SECONDS)
    computed_s: float = Field(gt=0, le=MOST_SECONDS)
    loop_bytes: PositiveInt
    fits: bool = True


class RecordedForecasts(FrozenModel):
    """A record of measured plans, as a path from this file, and what was predicted of its plans."""

    file: str
    forecasts: tuple[Forecast, ...] = ()


class MeasuredBaseline(Record):
    """What was predicted of plans that were run for real."""

    kind: ClassVar[str] = "baseline of measured plans"
    made_by: ClassVar[Command] = Baseline.made_by

    records: tuple[RecordedForecasts, ...] = Field(min_length=1)

    def text(self) -> str:
        """A line for each plan."""
        records = ",\n".join(map(_record_text, self.records))
        head = _line({"schema_version": self.schema_version, NEEDS: self.since})
        return f'{head[:-1]}, "records": [\n{records}\n]}}\n'


def _record_text(record: RecordedForecasts) -> str:
    plans = (
        f"  {_line(one.model_dump(mode='json', exclude_defaults=True))}" for one in record.forecasts
    )
    listed = ",\n".join(plans)
    head = _line({"file": record.file})
    return f' {head[:-1]}, "forecasts": [\n{listed}]}}' if listed else f" {head}"
