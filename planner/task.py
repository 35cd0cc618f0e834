"""What the user asked for, against what the model and the devices can do."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ditplan.planner.objectives import FASTEST, Objective
from ditplan.planner.space.approximations import (
    PIPEFUSION_S,
    STEP_CACHES,
    ApproximationPolicy,
    step_caches_within,
)
from ditplan.profiles.backends import LoadedBackend, find_backend
from ditplan.profiles.capabilities import require_mode
from ditplan.profiles.cluster import ClusterProfile, DeviceKind
from ditplan.profiles.errors import InputError, Sentence, Setting
from ditplan.profiles.family import ModelFamily, family_of
from ditplan.profiles.limits import ModelLimits, dtype_fault, warmup_excess, workload_fault
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import Mode, ModelProfile, ModelSpec
from ditplan.profiles.plan import Fallback
from ditplan.profiles.quality import MeasuredQuality
from ditplan.profiles.workload import Workload

QUALITIES = ("safe", "exact", "any")


def native() -> LoadedBackend:
    """The backend of what nobody asked another one for: this package's own runtime."""
    return find_backend("native")


def workload_for(
    spec: ModelSpec, device: DeviceKind, *, guidance: bool | None = None, **asked: Any
) -> Workload:
    """The model's usual workload with what the user asked for, checked against model and device.

    Raises:
        InputError: what the model or the device can't do.
    """
    changes = {name: value for name, value in asked.items() if value is not None}
    if device == "cpu":
        changes.setdefault("dtype", "float32")
    family = family_of(spec.transformer_class)
    if guidance is not None:
        if family.guidance == "embedded":
            raise InputError(
                Setting("guidance", guidance),
                f": {spec.name} makes one pass a step with or without guidance, so there is none "
                "to switch; leave it out",
            )
        changes["passes"] = max(2, spec.defaults.passes) if guidance else 1
    workload = spec.defaults.model_copy(update=changes)
    if wrong := _text_fault(spec, family, workload):
        raise InputError(wrong)
    limits = ModelLimits.of_spec(spec, family)
    if wrong := dtype_fault(workload, device) or workload_fault(limits, workload):
        raise InputError(wrong)
    return workload


def _text_fault(spec: ModelSpec, family: ModelFamily, workload: Workload) -> Sentence | None:
    """Why texts can't have the length that was asked for; None if they can."""
    usual = spec.defaults.text_tokens
    if family.text_varies or family.text_length_argument or workload.text_tokens == usual:
        return None
    return Sentence(
        Setting("text_tokens", workload.text_tokens),
        f": the pipeline of {spec.name} makes every text {usual} tokens long; leave it out",
    )


def check_quality(quality: str) -> float | None:
    """The largest relative L2 distance allowed, None for one of the names.

    Raises:
        InputError: neither a name nor a distance.
    """
    if quality in QUALITIES:
        return None
    try:
        bound = float(quality)
    except ValueError:
        bound = -1.0
    if not 0 <= bound < float("inf"):
        asked = Setting("quality", quality)
        raise InputError(asked, ": must be safe, exact, any or a number from 0 on")
    return bound


def allowed_for(
    spec: ModelSpec,
    workload: Workload,
    quality: str,
    known: MeasuredQuality | None,
    *,
    pipefusion: int | None = None,
    patches: int | None = None,
    warmup_steps: int | None = None,
) -> ApproximationPolicy | None:
    """Which approximate plans the user allows; None if only exact ones.

    `known` is what was measured of the model with the user's weights at this workload. PipeFusion
    always has a warm-up step; step caches are allowed by `any`, and by a bound that theirs keeps.
    All but `any` prefer an exact plan to one of unknown error that isn't clearly faster.

    Raises:
        InputError: settings of PipeFusion where there can be none, more warm-up steps than steps,
            or a bound and nothing measured to compare with it.
    """
    bound = check_quality(quality)
    caches = STEP_CACHES if quality == "any" else ()
    if bound is not None:
        caches = step_caches_within(bound, known)
    if quality == "exact" or pipefusion == 1:
        if patches is None and warmup_steps is None:
            return (
                ApproximationPolicy(bound=bound, known=known, step_caches=caches)
                if caches
                else None
            )
        remedy = Setting("quality", "safe")
        if pipefusion == 1:
            remedy = Setting("pipefusion", "2 or more")
        raise InputError(
            *PIPEFUSION_S, ", which is ruled out: give ", remedy, ", or leave them out"
        )
    if warmup_steps is not None and (wrong := warmup_excess(warmup_steps, workload)):
        raise InputError(wrong)
    if bound is not None and known is None:
        raise InputError(
            Setting("quality", quality),
            ": how far approximate latents are from one device's is not known for these weights of "
            f"{spec.name} at {workload.width}x{workload.height}, {workload.steps} steps, and "
            "neither random weights nor another model can tell; it takes a measurement, recorded "
            f"in profiles/distances/{spec.name}.json; till then use ",
            Setting("quality", "exact"),
            ", or safe",
        )
    return ApproximationPolicy(
        patches, warmup_steps, bound, known, caches, prefers_exact=quality != "any"
    )


@dataclass(frozen=True)
class Task:
    """What to plan: a model's workload on at most `gpus` devices of a cluster (all of them if
    None).

    `pins` are degrees that the user fixed, `modes` the execution modes that the user demands (None
    leaves the choice to the search). `allowed` says which approximate plans may be chosen, None
    that none may; `known` is what was measured of their quality. `vae_parallel` ranks decode.
    `objective` decides between legal plans. `text_lengths` says how often texts of so many tokens
    come; empty, all up to the workload's come alike often.
    """

    spec: ModelSpec
    workload: Workload
    cluster: ClusterProfile
    gpus: int | None = None
    pins: Mapping[str, int] = field(default_factory=dict)
    modes: tuple[Mode, ...] | None = None
    backend: LoadedBackend = field(default_factory=native)
    profile: ModelProfile | None = None
    allowed: ApproximationPolicy | None = None
    known: MeasuredQuality | None = None
    objective: Objective = FASTEST
    text_lengths: Mapping[int, float] = field(default_factory=dict)
    vae_parallel: int = 1

    @property
    def device_kind(self) -> DeviceKind:
        """What the cluster's ranks run on."""
        return self.cluster.devices[0].kind

    @property
    def own_choice(self) -> Mesh | None:
        """The mesh that the backend's engine takes of the GPUs, where it chooses one by itself."""
        gpus = self.gpus or len(self.cluster.devices)
        return self.backend.own_choice(self.spec, self.workload, gpus)

    @property
    def searched_modes(self) -> tuple[Mode, ...]:
        """The modes to choose from.

        Raises:
            InputError: a demanded mode that the backend doesn't have on these devices.
        """
        searched = self.modes or self.backend.capabilities.modes_to_search(self.device_kind)
        for mode in searched:
            require_mode(self.backend.capabilities, mode, self.device_kind)
        return searched

    @property
    def fallback(self) -> Fallback:
        """What becomes of a mode that can't be had: a demanded one is not to be replaced."""
        return "refuse" if self.modes else "eager"


@dataclass(frozen=True)
class TuneRequest:
    """What a user asked of `tune` that holds for any cluster and workload.

    `quality` is what `check_quality` takes, `known` tells what was measured of the user's weights
    at a workload; `text_lengths` as in `Task`.
    """

    spec: ModelSpec
    known: Callable[[Workload], MeasuredQuality | None]
    quality: str = "safe"
    gpus: int | None = None
    pins: Mapping[str, int] = field(default_factory=dict)
    patches: int | None = None
    warmup_steps: int | None = None
    mode: Mode | None = None
    backend: LoadedBackend = field(default_factory=native)
    objective: Objective = FASTEST
    text_lengths: Mapping[int, float] = field(default_factory=dict)
    vae_parallel: int = 1

    def allowed(self, workload: Workload) -> ApproximationPolicy | None:
        """Which approximate plans the user allows at a workload.

        Raises:
            InputError: as `allowed_for`.
        """
        return allowed_for(
            self.spec,
            workload,
            self.quality,
            self.known(workload),
            pipefusion=self.pins.get("pipefusion"),
            patches=self.patches,
            warmup_steps=self.warmup_steps,
        )

    def task(self, workload: Workload, cluster: ClusterProfile) -> Task:
        """The task of planning a workload on a cluster.

        Raises:
            InputError: as `allowed_for`.
        """
        return Task(
            self.spec,
            workload,
            cluster,
            gpus=self.gpus,
            pins=self.pins,
            modes=None if self.mode is None else (self.mode,),
            backend=self.backend,
            allowed=self.allowed(workload),
            known=self.known(workload),
            objective=self.objective,
            text_lengths=self.text_lengths,
            vae_parallel=self.vae_parallel,
        )
