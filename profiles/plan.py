"""The execution plan: what is needed to run, why it was chosen, and what it should cost."""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from ditplan.profiles.bounds import MOST_BLOCKS, MOST_ORDER, Blocks, Patches, Steps
from ditplan.profiles.errors import InputError
from ditplan.profiles.family import family_of
from ditplan.profiles.mesh import AXES, Mesh
from ditplan.profiles.model import AttentionKernel, Mode, Source
from ditplan.profiles.record import FrozenModel, Record, shortened
from ditplan.profiles.workload import Workload

Fallback = Literal["eager", "refuse"]
RingVariant = Literal["pass", "both-ways", "gather"]


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


Schedule = Literal["linear", "folded"]
Weights = Literal["replicated", "sharded"]


class PipeFusion(FrozenModel):
    """Patch-level pipelining: how many blocks each stage has, patches the image is cut into.

    With the "linear" schedule a patch comes by each stage once. With the "folded" one it goes
    there and back: a stage has blocks and their mirrors, the last one what is in the middle. Of the
    steps the first `warmup_steps` run the whole image, so that there are keys to start from.
    """

    blocks_per_stage: tuple[Blocks, ...] = Field(min_length=2, max_length=MOST_BLOCKS)
    patches: Patches
    warmup_steps: Steps
    schedule: Schedule = "linear"

    @model_validator(mode="after")
    def _folds_in_the_middle(self) -> Self:
        odd = [count for count in self.blocks_per_stage[:-1] if count % 2]
        if self.schedule == "folded" and odd:
            raise ValueError(
                f"a stage of {odd[0]} blocks can't have as many on the way there as on the way "
                "back: in a folded schedule all stages but the last need an even number"
            )
        return self

    def visits(self, stage: int) -> tuple[range, ...]:
        """The blocks of a stage, for each time that a patch comes by."""
        before = sum(self.blocks_per_stage[:stage])
        count = self.blocks_per_stage[stage]
        if self.schedule == "linear":
            return (range(before, before + count),)
        first, end = before // 2, sum(self.blocks_per_stage) - before // 2
        if stage == len(self.blocks_per_stage) - 1:
            return (range(first, end),)
        half = count // 2
        return range(first, first + half), range(end - half, end)

    def __str__(self) -> str:
        """Such as `4 patches, 1 warm-up step, stages of 6 + 6 + 6 + 6 blocks`."""
        patches = f"{self.patches} patch{'es' if self.patches > 1 else ''}"
        warmup = f"{self.warmup_steps} warm-up step{'s' if self.warmup_steps > 1 else ''}"
        folded = "folded " if self.schedule == "folded" else ""
        blocks = " + ".join(map(str, self.blocks_per_stage))
        return f"{patches}, {warmup}, {folded}stages of {blocks} blocks"


class TaylorSeer(FrozenModel):
    """A step cache: most steps extrapolate the transformer's prediction instead of computing it.

    The first `full_steps` compute, later ones as diffusers' `TaylorSeerCacheConfig` has it: step
    `full_steps` + 1 and each `interval`-th from there. `order` is that of the extrapolation: 0
    repeats the last prediction. Source: arXiv 2503.06923.
    """

    name: Literal["taylorseer"] = "taylorseer"
    interval: Steps
    full_steps: Steps = 3
    order: NonNegativeInt = Field(default=1, le=MOST_ORDER)

    def computes(self, step: int) -> bool:
        """Whether a step, counted from 0, runs the transformer."""
        return step < self.full_steps or (step - self.full_steps - 1) % self.interval == 0

    def computed_steps(self, steps: int) -> int:
        """How many of so many steps run the transformer."""
        full, every = min(steps, self.full_steps), self.interval
        # the step after the full ones is left out unless each one computes
        later = steps - full - 1
        return steps if every == 1 else full + max(0, -(-later // every))

    def __str__(self) -> str:
        """Such as `taylorseer interval 3 after 3, order 1`."""
        return f"{self.name} interval {self.interval} after {self.full_steps}, order {self.order}"


class Execution(FrozenModel):
    """How each rank runs its share.

    What can't be compiled or captured falls back to eager with a warning, or with `fallback`
    "refuse" ends the run with the reason. `ring` says how a ring's keys and values get about:
    passed on from rank to rank, one way or both ways at once, or gathered from all ranks first.
    With "sharded" weights ranks that run the same blocks have a piece of each, which they gather
    when it runs.
    """

    mode: Mode = "eager"
    fallback: Fallback = "eager"
    attention: AttentionKernel = "auto"
    ring: RingVariant = "pass"
    weights: Weights = "replicated"
    quantization: None = None
    offload: None = None
    vae: Literal["first-rank"] = "first-rank"


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

    mesh: Mesh
    placement: tuple[int, ...]
    mode: Mode
    pipefusion: PipeFusion | None = None
    step_cache: TaylorSeer | None = None
    predicted_s: float
    measured_s: float | None
    memory_bytes: PositiveInt
    reason: str


class Fingerprint(FrozenModel):
    """Where the plan holds: cluster, device names by rank, kinds of link, software versions."""

    cluster: str
    devices: tuple[str, ...] = Field(min_length=1)
    link_kinds: tuple[str, ...]
    software: dict[str, str]


class ExecutionPlan(Record):
    """One plan; `placement` lists the global rank of each mesh coordinate, last axis fastest.

    `token_shares` are in what proportion the ranks of a sequence share its tokens, one for each
    coordinate (ring, ulysses), last axis fastest; None for equal shares. Heads follow them. A plan
    with a `step_cache` isn't exact.
    """

    kind: ClassVar[str] = "plan"
    made_by: ClassVar[str] = "ditplan tune"

    model: PlannedModel
    workload: Workload
    backend: str
    mesh: Mesh
    placement: tuple[NonNegativeInt, ...]
    token_shares: tuple[PositiveInt, ...] | None = None
    pipefusion: PipeFusion | None
    step_cache: TaylorSeer | None = None
    execution: Execution
    quality: Quality
    prediction: Prediction | None
    measurement: Measurement | None
    runner_ups: tuple[RunnerUp, ...]
    fingerprint: Fingerprint

    @model_validator(mode="before")
    @classmethod
    def _is_no_book(cls, data: Any) -> Any:
        if isinstance(data, dict) and "entries" in data and "model" not in data:
            raise ValueError(
                "this is a book of plans, one for each workload of a mix; save the `plan` of one "
                "of its `entries` as a file of its own, or load it with PlanBook"
            )
        return data

    @model_validator(mode="after")
    def _placement_fits_mesh(self) -> Self:
        ranks = len(self.placement)
        if ranks != self.mesh.size or sorted(self.placement) != list(range(ranks)):
            raise ValueError(
                f"the placement must name the ranks 0 to {self.mesh.size - 1} of mesh {self.mesh} "
                f"once each, it is {shortened(list(self.placement))}"
            )
        shares, ranks = self.token_shares, self.mesh.sequence_parallel
        if shares is not None and len(shares) != ranks:
            raise ValueError(
                f"the token shares must be {ranks}, one for each rank of a sequence (ring x "
                f"ulysses of mesh {self.mesh}), they are {shortened(list(shares))}; leave them out "
                "for equal ones"
            )
        stages = len(self.pipefusion.blocks_per_stage) if self.pipefusion else 1
        if stages != self.mesh.pipefusion:
            raise ValueError(
                f"the mesh has {self.mesh.pipefusion} pipefusion stages, the pipefusion part has "
                f"{stages}"
            )
        return self

    @model_validator(mode="after")
    def _weights_can_be_shared_out(self) -> Self:
        if self.execution.weights == "replicated":
            return self
        if self.mesh.size == self.mesh.pipefusion:
            raise ValueError(
                f"weights are shared out over dp, cfg, ring and ulysses, of which mesh {self.mesh} "
                'has none; leave weights at "replicated"'
            )
        if "graph" in self.execution.mode:
            raise ValueError(
                f"weights that are shared out can't be gathered in mode {self.execution.mode}; use "
                "eager or compile"
            )
        return self

    @model_validator(mode="after")
    def _step_cache_fits(self) -> Self:
        if self.step_cache and self.pipefusion:
            raise ValueError(
                "a step cache can't be combined with pipefusion: stages hold stale keys of the "
                "last step, and a step that is left out renews none; leave one of them out"
            )
        if self.step_cache and self.quality.exact:
            raise ValueError(
                f"the plan has a step cache ({self.step_cache}), which is an approximation, and "
                "its quality says exact; set `exact` to false"
            )
        return self

    def blocks_of(self, rank: int) -> tuple[int, ...] | None:
        """The blocks that a rank runs; None for all of them."""
        if self.pipefusion is None or rank not in self.placement:
            return None
        coordinate = self.mesh.coordinates()[self.placement.index(rank)]
        stage = coordinate[AXES.index("pipefusion")]
        return tuple(block for visit in self.pipefusion.visits(stage) for block in visit)

    def require_ranks(self, ranks: int) -> None:
        """Refuses to run on another number of ranks.

        Raises:
            InputError: says both numbers and what to do.
        """
        if ranks != self.mesh.size:
            raise InputError(
                f"the plan needs {self.mesh.size} ranks ({self.mesh}), there are {ranks}; start "
                f"{self.mesh.size} ranks or tune for {ranks}: `ditplan tune --gpus {ranks}`"
            )

    def require_model(self, transformer_class: str, config_hash: str) -> None:
        """Refuses to run another model, or this one with passes that it doesn't make.

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
        passes, name = self.workload.passes, self.model.name
        if passes > 1 and family_of(transformer_class).guidance == "embedded":
            raise InputError(
                f"the plan has {passes} passes a step, {name} makes one with or without guidance; "
                f"set the workload's passes to 1, or tune: `ditplan tune --model {name}`"
            )

    def require_links(self, found: str) -> None:
        """Refuses to run over another kind of link than the one it was made for.

        Raises:
            InputError: says both kinds.
        """
        planned = self.fingerprint.link_kinds
        if self.mesh.size > 1 and planned and found not in planned:
            raise InputError(
                f"the plan was made for devices linked by {' and '.join(planned)}, these are "
                f"linked by {found}; mend the link or tune for this cluster: "
                "`ditplan tune --hosts FILE`"
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
                    "tune for this cluster: `ditplan tune --hosts FILE`"
                )


def bare_plan(
    model: PlannedModel,
    workload: Workload,
    mesh: Mesh,
    *,
    execution: Execution | None = None,
    pipefusion: PipeFusion | None = None,
    placement: tuple[int, ...] | None = None,
    token_shares: tuple[int, ...] | None = None,
    step_cache: TaylorSeer | None = None,
) -> ExecutionPlan:
    """A plan that no search has made, without numbers, for any devices; ranks in the usual order
    without a `placement`, equal parts of the sequence without `token_shares`.
    """
    return ExecutionPlan(
        model=model,
        workload=workload,
        backend="native",
        mesh=mesh,
        placement=placement or tuple(range(mesh.size)),
        token_shares=token_shares,
        pipefusion=pipefusion,
        step_cache=step_cache,
        execution=execution or Execution(),
        quality=Quality(exact=pipefusion is None and step_cache is None),
        prediction=None,
        measurement=None,
        runner_ups=(),
        fingerprint=Fingerprint(
            cluster="any", devices=("any",) * mesh.size, link_kinds=(), software={}
        ),
    )
