"""How far a model's approximate pictures were measured to be from those of one device."""

from typing import ClassVar

from pydantic import Field

from ditplan.profiles.bounds import Patches, Steps
from ditplan.profiles.configuration import TaylorSeer
from ditplan.profiles.record import FrozenModel, Record
from ditplan.profiles.workload import Workload


class QualityPoint(FrozenModel):
    """PipeFusion with so many patches and warm-up steps, whatever the stages: these don't matter.

    `relative_l2` is the L2 distance of the final latents from those of one device over their norm,
    the mean of the samples.
    """

    patches: Patches
    warmup_steps: Steps
    relative_l2: float = Field(ge=0)


class StepCachePoint(FrozenModel):
    """An otherwise exact plan with a step cache; the mesh doesn't matter. Distances as above."""

    step_cache: TaylorSeer
    relative_l2: float = Field(ge=0)
    measured_with: str


class MeasuredQuality(Record):
    """Distances of one model with its own weights at one workload.

    They hold for no other weights, sizes or numbers of steps.
    """

    kind: ClassVar[str] = "measured quality"
    made_by: ClassVar[str] = "python -m benchmarks.pipefusion_quality"

    model: str
    config_hash: str
    workload: Workload
    points: tuple[QualityPoint, ...] = Field(min_length=1)
    step_caches: tuple[StepCachePoint, ...] = ()
    measured_with: str

    def holds_for(self, config_hash: str, workload: Workload) -> bool:
        """Whether the distances are those of a workload; batch and dtype don't change them."""
        same = {"batch": workload.batch, "dtype": workload.dtype}
        return config_hash == self.config_hash and workload == self.workload.model_copy(update=same)

    def relative_l2(self, patches: int, warmup_steps: int) -> float | None:
        """The distance of a setting, if it was measured."""
        for point in self.points:
            if (point.patches, point.warmup_steps) == (patches, warmup_steps):
                return point.relative_l2
        return None
