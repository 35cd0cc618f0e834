"""Plans that were run on one machine, with all that predictions of them come from."""

import statistics
from typing import Any, ClassVar

from pydantic import Field, model_validator

from ditplan.profiles.bounds import MeasuredSeconds
from ditplan.profiles.cluster import ClusterProfile
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.model import Mode, ModelProfile
from ditplan.profiles.record import FrozenModel, Record
from ditplan.profiles.workload import Workload


class MeasuredPlan(FrozenModel):
    """What each of its rounds measured of a plan.

    No `memory_bytes` where other plans had left theirs.
    """

    configuration: Configuration
    latency_s: tuple[MeasuredSeconds, ...] = Field(min_length=1)
    memory_bytes: int | None

    @property
    def candidate(self) -> str:
        """The configuration as the planner writes it."""
        return str(self.configuration)

    @property
    def median_s(self) -> float:
        """The denoising loop."""
        return statistics.median(self.latency_s)


class MeasuredPlans(Record):
    """A model's plans on one machine, with the cluster and the model's blocks as measured there."""

    kind: ClassVar[str] = "record of measured plans"
    made_by: ClassVar[str] = "python -m benchmarks.planner_predictions --save"
    newest_schema: ClassVar[int] = 2

    schema_version: int = 2
    model: str
    links: str
    workload: Workload
    modes: tuple[Mode, ...] | None
    cluster: ClusterProfile
    profile: ModelProfile
    runs: tuple[MeasuredPlan, ...]

    @model_validator(mode="before")
    @classmethod
    def _has_configurations(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("schema_version", 1) == 1:
            raise ValueError("schema 1 named plans by their texts, and isn't read any more")
        return data

    @property
    def file_name(self) -> str:
        """What the record is kept as."""
        size = f"{self.workload.height}x{self.workload.frames}"
        return f"{self.model}-{size}-{self.links}.json"
