"""The execution plan: what is needed to run, why it was chosen, and what it should cost."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, ModelWrapValidatorHandler, PositiveInt, model_validator

from ditplan.profiles.bounds import TextSize
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.errors import Command, InputError, Setting
from ditplan.profiles.evidence import SIGNATURE, signature_of
from ditplan.profiles.family import known_family
from ditplan.profiles.fingerprint import (
    Fingerprint,
    Mismatch,
    Policy,
    RankFacts,
    config_changes,
)
from ditplan.profiles.limits import (
    ModelLimits,
    configuration_fault,
    dtype_fault,
    workload_fault,
)
from ditplan.profiles.locations import Location, why_not_located
from ditplan.profiles.mesh import AXES, Mesh
from ditplan.profiles.model import Source
from ditplan.profiles.plan_schema_1 import plan_of_schema_1
from ditplan.profiles.record import FrozenModel, Record
from ditplan.profiles.workload import Workload

if TYPE_CHECKING:
    from ditplan.profiles.cluster import DeviceKind
    from ditplan.profiles.model import ModelSpec

Fallback = Literal["eager", "refuse"]


class PlannedTransformer(FrozenModel):
    """A transformer of the pipeline: the component's name, its class, its config and the digest of
    that; plans from before the config was kept have None.
    """

    component: str
    transformer_class: str
    config_hash: str
    config: dict[str, Any] | None = None


class PlannedModel(FrozenModel):
    """The model a plan is for."""

    name: str
    pipeline_class: str
    transformers: tuple[PlannedTransformer, ...] = Field(min_length=1)

    @classmethod
    def of(
        cls,
        name: str,
        pipeline_class: str,
        transformer_class: str,
        config_hash: str,
        config: dict[str, Any] | None = None,
    ) -> Self:
        """A pipeline whose transformers, one or more, are all of one class and config."""
        transformer = PlannedTransformer(
            component="transformer",
            transformer_class=transformer_class,
            config_hash=config_hash,
            config=config,
        )
        return cls(name=name, pipeline_class=pipeline_class, transformers=(transformer,))

    @classmethod
    def of_spec(cls, spec: "ModelSpec") -> Self:
        """The model of a spec."""
        return cls.of(
            spec.name, spec.pipeline_class, spec.transformer_class, spec.config_hash, spec.config
        )

    @property
    def family(self) -> str:
        """The family of its transformers; empty where none describes them."""
        known = known_family(self.transformers[0].transformer_class)
        return known.name if known else ""

    @property
    def key(self) -> tuple[str, ...]:
        """What two plans have in common that are for one model."""
        digests = (one.transformer_class + one.config_hash for one in self.transformers)
        return (self.name, self.pipeline_class, *digests)


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


class ExecutionPlan(Record):
    """One plan: the configuration to run, for which model and workload, why, and where it holds.

    What can't be compiled or captured falls back to eager with a warning, or with `fallback`
    "refuse" ends the run with the reason. A plan with a step cache isn't exact. `text_sizes`, which
    ascend, are those that texts are rounded up to; without any a text keeps its length.
    `on_mismatch` says what is done where its fingerprint isn't what is there. Its file has a
    `signature` of what it is for, and is refused where that was changed by hand. `locations` say
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
    text_sizes: tuple[TextSize, ...] = ()
    fallback: Fallback = "eager"
    quality: Quality
    prediction: Prediction | None
    measurement: Measurement | None
    runner_ups: tuple[RunnerUp, ...]
    fingerprint: Fingerprint
    on_mismatch: Policy = "refuse"
    locations: tuple[Location, ...] = ()

    @property
    def changes_nothing(self) -> bool:
        """Whether a pipeline does under it just what it does by itself."""
        own = self.configuration
        settings = (own.mesh.size, own.mode, own.attention, own.step_cache, self.text_sizes)
        return settings == (1, "eager", "auto", None, ())

    @property
    def kept_when_resumed(self) -> dict[str, Any]:
        """What of it isn't chosen anew when it is tuned again."""
        return {"text_sizes": self.text_sizes, "on_mismatch": self.on_mismatch}

    @property
    def mesh(self) -> Mesh:
        """The configuration's."""
        return self.configuration.mesh

    @model_validator(mode="wrap")
    @classmethod
    def _is_as_signed(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(data, dict) or SIGNATURE not in data:
            return handler(data)
        said = data[SIGNATURE]
        plan = handler({name: value for name, value in data.items() if name != SIGNATURE})
        if said != signature_of(plan):
            raise ValueError(
                "its model, workload, backend or devices were changed by hand, so what it says of "
                "them was never planned"
            )
        return plan

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
        placement = self.configuration.placement
        if why := why_not_located(placement, self.locations):
            return why
        if why := configuration_fault(self.configuration, self.workload):
            return why
        transformer_class = self.model.transformers[0].transformer_class
        if family := known_family(transformer_class):
            limits = ModelLimits.of_family(self.model.name, family)
            if why := workload_fault(limits, self.workload):
                return why
        if list(self.text_sizes) != sorted(set(self.text_sizes)):
            return f"text_sizes {', '.join(map(str, self.text_sizes))} don't ascend; sort them"
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

    def require_model(
        self,
        transformer_class: str,
        config_hash: str,
        config: Mapping[str, Any] | None = None,
        usual: Mapping[str, Any] | None = None,
    ) -> None:
        """Refuses to run another model. `usual` are the values that the class takes for what a
        config doesn't name: a newer diffusers may have added keys to the same one.

        Raises:
            InputError: says what the plan is for and what was found.
        """
        planned = self.model.transformers[0]
        if transformer_class != planned.transformer_class:
            raise InputError(
                f"the plan is for a {planned.transformer_class} ({self.model.name}), the pipeline "
                f"has a {transformer_class}; load the right pipeline or tune this one"
            )
        if config_hash == planned.config_hash:
            return
        # only here is more of what is shipped read than the plan itself
        from ditplan.profiles.catalog import shipped_config

        recorded = planned.config or shipped_config(self.model.name, planned.config_hash)
        if recorded is None or config is None:
            raise InputError(
                f"the plan is for {self.model.name} with config {planned.config_hash}, "
                f"this {transformer_class} has config {config_hash}; load the right weights or "
                "tune this model"
            )
        if changes := config_changes(recorded, config, usual or {}):
            more = f" and {len(changes) - 1} more" if len(changes) > 1 else ""
            raise InputError(
                f"the plan is for {self.model.name}, this {transformer_class} has another config: "
                f"{changes[0]}{more}; load the right weights or tune this model"
            )

    def require_workload(self, limits: ModelLimits, device: "DeviceKind") -> None:
        """Refuses to run what the model or the devices can't do.

        Raises:
            InputError: says what was given and what would be right.
        """
        # a plan that was made by `model_copy` was never checked
        wrong = self.why_unsound() or workload_fault(limits, self.workload)
        if wrong := wrong or dtype_fault(self.workload, device):
            raise InputError(wrong)

    def require_place(
        self, facts: Sequence[RankFacts], link_kind: str | None
    ) -> tuple[Mismatch, ...]:
        """Refuses to run where its fingerprint doesn't hold, unless its policy is to warn; gives
        what is to be warned of. `facts` are those of its ranks, in order.

        Raises:
            InputError: names what is otherwise and what that means.
        """
        found = self.fingerprint.mismatches(facts, link_kind)
        refused = [one for one in found if self._refuses(one)]
        if not refused:
            return found
        first, *others = refused
        also = f" (also {', '.join(one.name for one in others)})" if others else ""
        raise InputError(
            f"{first}{also}; run `",
            Command("run", (Setting("revalidate", True),)),
            "`, or tune here: `",
            Command("tune", (Setting("hosts", "FILE"),)),
            "`",
        )

    def _refuses(self, mismatch: Mismatch) -> bool:
        # versions say nothing of a plan that was never run
        is_evidence = mismatch.aspect != "software" or self.measurement is not None
        return self.on_mismatch == "refuse" and is_evidence

    def text(self) -> str:
        """What stands in the plan's file, with its signature behind the schema's version."""
        brace, version, needs, rest = super().text().split("\n", 3)
        return "\n".join([brace, version, needs, f' "{SIGNATURE}": "{signature_of(self)}",', rest])


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
