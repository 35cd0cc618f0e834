"""The execution plan: what is needed to run, why it was chosen, and what it should cost."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from ditplan.profiles.cluster import DeviceKind
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.errors import Command, InputError, Setting
from ditplan.profiles.family import load_families
from ditplan.profiles.limits import (
    ModelLimits,
    configuration_fault,
    dtype_fault,
    workload_fault,
)
from ditplan.profiles.locations import Location, why_no_locations
from ditplan.profiles.mesh import AXES, Mesh
from ditplan.profiles.model import ModelSpec, Source
from ditplan.profiles.plan_schema_1 import plan_of_schema_1
from ditplan.profiles.record import FrozenModel, Record, shortened
from ditplan.profiles.workload import Workload

Fallback = Literal["eager", "refuse"]


class PlannedTransformer(FrozenModel):
    """A transformer of the pipeline: the component's name, its class, the digest of its config."""

    component: str
    transformer_class: str
    config_hash: str


class PlannedModel(FrozenModel):
    """The model a plan is for."""

    name: str
    pipeline_class: str
    transformers: tuple[PlannedTransformer, ...] = Field(min_length=1)

    @classmethod
    def of(cls, name: str, pipeline_class: str, transformer_class: str, config_hash: str) -> Self:
        """A pipeline whose transformers, one or more, are all of one class and config."""
        transformer = PlannedTransformer(
            component="transformer", transformer_class=transformer_class, config_hash=config_hash
        )
        return cls(name=name, pipeline_class=pipeline_class, transformers=(transformer,))

    @classmethod
    def of_spec(cls, spec: ModelSpec) -> Self:
        """The model of a spec."""
        return cls.of(spec.name, spec.pipeline_class, spec.transformer_class, spec.config_hash)


class Quality(FrozenModel):
    """Whether a plan equals one device up to rounding.

    If not, `relative_l2` is the measured relative L2 distance of the final latents.
    """

    exact: bool
    relative_l2: float | None = Field(default=None, ge=0)
    measured_with: str | None = None

    @model_validator(mode="after")
    def _says_error_or_exact(self) -> Self:
        if self.exact and self.relative_l2 is not None:
            raise ValueError("an exact plan carries no error")
        return self


class Prediction(FrozenModel):
    """What the cost model expects.

    `parts` are the seconds of the denoising loop by cause and sum to `latency_s`. `latency_s` is
    the denoising loop, `end_to_end_s` adds text encoders and VAE, `setup_s` is loading.
    """

    latency_s: float = Field(gt=0)
    interval_s: tuple[float, float]
    end_to_end_s: float = Field(gt=0)
    setup_s: float = Field(ge=0)
    memory_bytes: PositiveInt
    parts: dict[str, float]
    link_bytes: dict[str, float]
    source: Source


class Measurement(FrozenModel):
    """Real runs of the denoising loop."""

    latency_s: float = Field(gt=0)
    runs_s: tuple[float, ...] = Field(min_length=1)
    memory_bytes: PositiveInt | None = None
    measured_on: str
    devices: str


class RunnerUp(FrozenModel):
    """A plan that lost, and why."""

    configuration: Configuration
    predicted_s: float
    measured_s: float | None
    memory_bytes: PositiveInt
    reason: str


class Fingerprint(FrozenModel):
    """Where the plan holds: cluster, device names by ascending rank, kinds of link, software
    versions.
    """

    cluster: str
    devices: tuple[str, ...] = Field(min_length=1)
    link_kinds: tuple[str, ...]
    software: dict[str, str]


class ExecutionPlan(Record):
    """One plan: the configuration to run, for which model and workload, why, and where it holds.

    What can't be compiled or captured falls back to eager with a warning, or with `fallback`
    "refuse" ends the run with the reason. A plan with a step cache isn't exact. `locations` say
    where the placement's ranks sit; a plan without any uses all the ranks of a job, in its order.
    """

    kind: ClassVar[str] = "plan"
    made_by: ClassVar[Command] = Command("tune")
    newest_schema: ClassVar[int] = 2

    schema_version: int = 2
    model: PlannedModel
    workload: Workload
    backend: str
    configuration: Configuration
    fallback: Fallback = "eager"
    quality: Quality
    prediction: Prediction | None
    measurement: Measurement | None
    runner_ups: tuple[RunnerUp, ...]
    fingerprint: Fingerprint
    locations: tuple[Location, ...] = ()

    @property
    def mesh(self) -> Mesh:
        """The configuration's."""
        return self.configuration.mesh

    @model_validator(mode="before")
    @classmethod
    def _is_no_book(cls, data: Any) -> Any:
        if isinstance(data, dict) and "entries" in data and "model" not in data:
            raise ValueError(
                "this is a book of plans, one for each workload of a mix; save the `plan` of one "
                "of its `entries` as a file of its own, or load it with PlanBook"
            )
        return data

    @model_validator(mode="before")
    @classmethod
    def _reads_schema_1(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("schema_version", 1) == 1 and "mesh" in data:
            return plan_of_schema_1(data)
        return data

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        if why := self.why_unsound():
            raise ValueError(why)
        return self

    def why_unsound(self) -> str | None:
        """What of it doesn't fit together, or what its kind of model can't do, in a sentence; None
        if nothing is wrong.
        """
        for one in (self.configuration, *(other.configuration for other in self.runner_ups)):
            if why := one.why_unsound():
                return why
        if why := self._why_nowhere() or configuration_fault(self.configuration, self.workload):
            return why
        transformer_class = self.model.transformers[0].transformer_class
        if family := load_families().get(transformer_class):
            limits = ModelLimits.of_family(self.model.name, family)
            if why := workload_fault(limits, self.workload):
                return why
        if (named := len(self.fingerprint.devices)) != self.mesh.size:
            return (
                f"the fingerprint names the devices of {named} ranks, mesh {self.mesh} has "
                f"{self.mesh.size}; name one for each rank"
            )
        if (cache := self.configuration.step_cache) and self.quality.exact:
            return (
                f"the plan has a step cache ({cache}), which is an approximation, and its quality "
                "says exact; set `exact` to false"
            )
        return None

    def _why_nowhere(self) -> str | None:
        """Why nobody can tell where its ranks are; None if it is said."""
        placement = self.configuration.placement
        if self.locations:
            return why_no_locations(self.locations, placement)
        if max(placement) >= self.mesh.size:
            return (
                f"the placement must name the ranks 0 to {self.mesh.size - 1} of mesh {self.mesh} "
                f"once each, it is {shortened(list(placement))}; other ranks need `locations`"
            )
        return None

    def seated(self, seats: Mapping[int, int]) -> Self:
        """The plan for other numbers of its ranks: `seats` has the new one of each of its own.
        Runner-ups keep theirs.
        """
        old = self.configuration
        placement = tuple(seats[rank] for rank in old.placement)
        order = sorted(old.ranks, key=lambda rank: seats[rank])
        names = dict(zip(old.ranks, self.fingerprint.devices, strict=True))
        devices = tuple(names[rank] for rank in order)
        locations = (one.model_copy(update={"rank": seats[one.rank]}) for one in self.locations)
        return self.model_copy(
            update={
                "configuration": replace(old, placement=placement),
                "fingerprint": self.fingerprint.model_copy(update={"devices": devices}),
                "locations": tuple(sorted(locations, key=lambda one: one.rank)),
            }
        )

    def configured(self, **changes: Any) -> Self:
        """The plan with other parts of its configuration, checked as when it is loaded."""
        parts = {
            part.name: getattr(self.configuration, part.name) for part in fields(Configuration)
        }
        return type(self).model_validate({**dict(self), "configuration": parts | changes})

    def blocks_of(self, rank: int) -> tuple[int, ...] | None:
        """The blocks that a rank runs; None for all of them."""
        part, placement = self.configuration.pipefusion, self.configuration.placement
        if part is None or rank not in placement:
            return None
        coordinate = self.mesh.coordinates()[placement.index(rank)]
        stage = coordinate[AXES.index("pipefusion")]
        return tuple(block for visit in part.visits(stage) for block in visit)

    def require_ranks(self, ranks: int) -> None:
        """Refuses to run on another number of ranks.

        Raises:
            InputError: says both numbers and what to do.
        """
        if ranks != self.mesh.size:
            raise InputError(
                f"the plan needs {self.mesh.size} ranks ({self.mesh}), there are {ranks}; start "
                f"{self.mesh.size} ranks or tune for {ranks}: `",
                Command("tune", (Setting("gpus", ranks),)),
                "`",
            )

    def require_model(self, transformer_class: str, config_hash: str) -> None:
        """Refuses to run another model.

        Raises:
            InputError: says what the plan is for and what was found.
        """
        planned = self.model.transformers[0]
        if transformer_class != planned.transformer_class:
            raise InputError(
                f"the plan is for a {planned.transformer_class} ({self.model.name}), the pipeline "
                f"has a {transformer_class}; load the right pipeline or tune this one"
            )
        if config_hash != planned.config_hash:
            raise InputError(
                f"the plan is for {self.model.name} with config {planned.config_hash}, "
                f"this {transformer_class} has config {config_hash}; load the right weights or "
                "tune this model"
            )

    def require_workload(self, limits: ModelLimits, device: DeviceKind) -> None:
        """Refuses to run what the model or the devices can't do.

        Raises:
            InputError: says what was given and what would be right.
        """
        # a plan that was made by `model_copy` was never checked
        wrong = self.why_unsound() or workload_fault(limits, self.workload)
        if wrong := wrong or dtype_fault(self.workload, device):
            raise InputError(wrong)

    def require_links(self, found: str) -> None:
        """Refuses to run over another kind of link than the one it was made for.

        Raises:
            InputError: says both kinds.
        """
        planned = self.fingerprint.link_kinds
        if self.mesh.size > 1 and planned and found not in planned:
            raise InputError(
                f"the plan was made for devices linked by {' and '.join(planned)}, these are "
                f"linked by {found}; mend the link or tune for this cluster: `",
                Command("tune", (Setting("hosts", "FILE"),)),
                "`",
            )

    def require_devices(self, devices: tuple[str, ...]) -> None:
        """Refuses to run on other devices than those it was made for.

        Raises:
            InputError: names the first rank that differs.
        """
        for rank, (planned, found) in enumerate(
            zip(self.fingerprint.devices, devices, strict=False)
        ):
            if planned != found:
                raise InputError(
                    f"the plan was made for {planned} on rank {rank}, there is {found}; "
                    "tune for this cluster: `",
                    Command("tune", (Setting("hosts", "FILE"),)),
                    "`",
                )


def bare_plan(
    model: PlannedModel,
    workload: Workload,
    mesh: Mesh,
    placement: tuple[int, ...] | None = None,
    **parts: Any,
) -> ExecutionPlan:
    """A plan that no search has made, without numbers, for any devices; ranks in the usual order
    without a `placement`. `parts` are further ones of its `Configuration`.
    """
    configuration = Configuration(mesh, placement or tuple(range(mesh.size)), **parts)
    return ExecutionPlan(
        model=model,
        workload=workload,
        backend="native",
        configuration=configuration,
        quality=Quality(exact=not (configuration.pipefusion or configuration.step_cache)),
        prediction=None,
        measurement=None,
        runner_ups=(),
        fingerprint=Fingerprint(
            cluster="any", devices=("any",) * mesh.size, link_kinds=(), software={}
        ),
    )
