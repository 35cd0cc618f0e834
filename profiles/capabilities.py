"""What a backend can run: data, since the planner must know it and imports no runtime."""

from typing import Annotated, Literal, Protocol, Self

from pydantic import Field, model_validator

from ditplan.profiles.cluster import DeviceKind
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.errors import Command, InputError, Sentence, Setting
from ditplan.profiles.family import family_names
from ditplan.profiles.mesh import AXES
from ditplan.profiles.model import Mode
from ditplan.profiles.record import FrozenModel

Running = Literal["in ranks", "elsewhere", "never"]
NAME = r"[a-z0-9]+([.-][a-z0-9]+)*"
"""What a backend may be called: it stands in plans and on command lines."""


SPLIT_VAES = (
    "AutoencoderKL",
    "AutoencoderKLFlux2",
    "AutoencoderDC",
    "AutoencoderKLQwenImage",
    "AutoencoderKLWan",
    "AutoencoderKLCogVideoX",
    "AutoencoderKLHunyuanVideo",
)
"""The classes of VAEs that ranks can share, by rows of the picture: their layers are known."""


class OfFamily(Protocol):
    """A model, as a spec or as a plan names it."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    @property
    def family(self) -> str:
        """The family of its transformer."""
        ...


class Capabilities(FrozenModel):
    """What a backend can run; what isn't claimed it can't.

    It has the mesh's `axes`, of which those of `approximate_axes` give another result than one
    device; all other degrees stay 1. It has the execution `modes` on GPUs and `cpu_modes`, some of
    them, on CPUs. `families` are those of its models, `staged_families` those with pipefusion,
    `split_families` those with ring and ulysses; None is all of them.

    `balances` says whether stages may have any number of blocks, and ranks any number of tokens,
    `folds_skips` whether models with long skips have the folded schedule, `shards_weights` whether
    ranks can share weights out, `caches_steps` whether there are step caches, `splits_vae` whether
    ranks can decode a picture together, `chooses_kernels` whether a plan says which kernel computes
    attention. `loads_parts` says
    whether `prepare` takes a pipeline of which a rank has loaded what it runs alone.

    `runs` says where its plans run: "in ranks" that ditplan starts, or a job's; "elsewhere", by
    what `emit` writes; or "never".
    """

    name: Annotated[str, Field(pattern=f"^{NAME}$", max_length=40)]
    axes: tuple[str, ...]
    approximate_axes: tuple[str, ...] = ()
    modes: Annotated[tuple[Mode, ...], Field(min_length=1)]
    cpu_modes: tuple[Mode, ...]
    families: tuple[str, ...] | None
    staged_families: tuple[str, ...] | None = None
    split_families: tuple[str, ...] | None = None
    balances: bool = False
    folds_skips: bool = False
    shards_weights: bool = False
    caches_steps: bool = False
    splits_vae: bool = False
    chooses_kernels: bool = False
    loads_parts: bool = False
    runs: Running

    @model_validator(mode="after")
    def _names_what_there_is(self) -> Self:
        known = family_names()
        families = self.families or known
        for field, names, allowed in (
            ("axes", self.axes, AXES),
            ("approximate_axes", self.approximate_axes, self.axes),
            ("cpu_modes", self.cpu_modes, self.modes),
            ("families", self.families or (), known),
            ("staged_families", self.staged_families or (), families),
            ("split_families", self.split_families or (), families),
        ):
            if wrong := [name for name in names if name not in allowed]:
                raise ValueError(f"{field}: {wrong[0]!r} is none of {', '.join(allowed)}")
            if len(set(names)) < len(names):
                raise ValueError(f"{field}: names one twice")
        return self

    @property
    def exact_axes(self) -> tuple[str, ...]:
        """The axes that give one device's result."""
        return tuple(axis for axis in self.axes if axis not in self.approximate_axes)

    def modes_on(self, device: DeviceKind) -> tuple[Mode, ...]:
        """The execution modes it has on a kind of device."""
        return self.cpu_modes if device == "cpu" else self.modes

    def modes_to_search(self, device: DeviceKind) -> tuple[Mode, ...]:
        """Those that are tried unasked: on CPUs compiling takes longer than it saves."""
        return ("eager",) if device == "cpu" else self.modes

    def why_no_degree(self, axis: str, degree: int) -> str | None:
        """Why an axis can't be split so often, whatever the model; None if it can."""
        if degree == 1 or axis in self.axes:
            return None
        axes = ", ".join(self.axes) or "none"
        return f"backend {self.name} can't run {axis}{degree}: it has {axes}; leave {axis} at 1"

    def why_not_split(self, model: OfFamily, axis: str) -> str | None:
        """Why an axis can't be split for a model of this family; None if it can."""
        of_axis = {
            "pipefusion": self.staged_families,
            "ring": self.split_families,
            "ulysses": self.split_families,
        }.get(axis)
        if of_axis is None or model.family in of_axis:
            return None
        return f"{model.name} can't run with {axis} on backend {self.name}; leave it at 1"

    def why_not_model(self, model: OfFamily) -> str | None:
        """Why it doesn't have a model at all; None if it has."""
        if self.families is None or model.family in self.families:
            return None
        return Sentence(
            f"backend {self.name} doesn't run {model.name}: it has the families "
            f"{', '.join(self.families)}; use ",
            Setting("backend", "native"),
        )

    def why_unsupported(self, configuration: Configuration, model: OfFamily) -> str | None:
        """Why it can't run a configuration of a model, as far as data says it: one sentence with
        what would be right; None if it can.
        """
        if why := self.why_not_model(model):
            return why
        for axis, degree in zip(AXES, configuration.mesh.degrees, strict=True):
            why = self.why_no_degree(axis, degree)
            if degree > 1 and (why := why or self.why_not_split(model, axis)):
                return why
        if configuration.mode not in self.modes:
            has = ", ".join(self.modes)
            return f"backend {self.name} has no mode {configuration.mode}; it has {has}"
        part = configuration.pipefusion
        for is_asked, is_had, what in (
            (configuration.weights == "sharded", self.shards_weights, "weights in pieces"),
            (configuration.step_cache, self.caches_steps, "step caches"),
            (configuration.vae_parallel > 1, self.splits_vae, "VAE over several ranks"),
            (configuration.token_shares, self.balances, "unequal shares of tokens"),
            (part and part.schedule == "folded", self.folds_skips, "folded schedule"),
        ):
            if is_asked and not is_had:
                return (
                    f"backend {self.name} has no {what}, which the plan has; tune for this backend"
                )
        return None


def require_mode(capabilities: Capabilities, mode: Mode, device: DeviceKind) -> None:
    """Refuses a mode that a backend doesn't have on a kind of device.

    Raises:
        InputError: says which modes it has there.
    """
    has = capabilities.modes_on(device)
    if mode in has:
        return
    devices = "CPUs" if device == "cpu" else "GPUs"
    if not has:
        raise InputError(f"backend {capabilities.name} doesn't run on {devices}; use native")
    raise InputError(
        f"backend {capabilities.name} can't run mode {mode} on {devices}; there it has "
        f"{', '.join(has)}"
    )


def require_ranks_to_run_in(capabilities: Capabilities) -> None:
    """Refuses to run in ranks what a backend doesn't run there.

    Raises:
        InputError: says what to do instead.
    """
    if capabilities.runs != "in ranks":
        name = capabilities.name
        raise InputError(
            f"plans of backend {name} are priced here and not run; plan on paper with ",
            Setting("cluster", "NAME"),
            ", see `",
            Command("export", (Setting("to", name),)),
            "`, or use ",
            Setting("backend", "native"),
        )
