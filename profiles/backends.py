"""What each runtime can run: data, since the planner must know it and imports no runtime."""

from ditplan.profiles.cluster import DeviceKind
from ditplan.profiles.errors import InputError, Setting
from ditplan.profiles.mesh import AXES
from ditplan.profiles.model import Mode
from ditplan.profiles.record import FrozenModel


class Backend(FrozenModel):
    """A runtime: the mesh axes it can use (all other degrees stay 1) and its execution modes.

    Those of `approximate_axes` give another result than one device.
    `cpu_modes` are those of `modes` that it can run on CPUs, which have no graphs to capture into.
    `staged_families` have pipefusion; None leaves it to the families themselves. `split_families`
    have ring and ulysses, None for all. `balances` says
    whether stages may have any number of blocks, and ranks any number of tokens, `folds_skips`
    whether models with long skips have the folded schedule, `shards_weights` whether ranks can
    share weights out, `caches_steps` whether there are step caches, `splits_vae` whether ranks can
    decode a picture together, `runs_here` whether this package runs its plans or only prices them.
    """

    name: str
    axes: tuple[str, ...]
    approximate_axes: tuple[str, ...] = ()
    modes: tuple[Mode, ...]
    cpu_modes: tuple[Mode, ...]
    staged_families: tuple[str, ...] | None = None
    split_families: tuple[str, ...] | None = None
    balances: bool = True
    folds_skips: bool = True
    shards_weights: bool = True
    caches_steps: bool = True
    splits_vae: bool = True
    runs_here: bool = True

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


NATIVE = Backend(
    name="native",
    axes=AXES,
    approximate_axes=("pipefusion",),
    modes=("eager", "compile", "graph", "compile+graph"),
    cpu_modes=("eager", "compile"),
)

BACKENDS = {
    "native": NATIVE,
    "dry-run": NATIVE.model_copy(update={"name": "dry-run", "runs_here": False}),
    "xdit": Backend(
        name="xdit",
        axes=AXES,
        approximate_axes=("pipefusion",),
        modes=("eager", "compile"),
        cpu_modes=(),
        staged_families=("flux", "hunyuan-dit", "pixart", "sana", "sd3"),
        balances=False,
        folds_skips=False,
        shards_weights=False,
        caches_steps=False,
        splits_vae=False,
        runs_here=False,
    ),
    # its context parallelism; the families are those of its transformers that have a `_cp_plan`
    "diffusers": Backend(
        name="diffusers",
        axes=("ring", "ulysses"),
        modes=("eager", "compile"),
        cpu_modes=(),
        split_families=("flux", "flux2", "qwen-image", "wan"),
        balances=False,
        folds_skips=False,
        shards_weights=False,
        caches_steps=False,
        splits_vae=False,
        runs_here=False,
    ),
}


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


def require_mode(backend: Backend, mode: Mode, device: DeviceKind) -> None:
    """Refuses a mode that a backend doesn't have on a kind of device.

    Raises:
        InputError: says which modes it has there.
    """
    if mode not in backend.modes_on(device):
        devices = "CPUs" if device == "cpu" else "GPUs"
        if not backend.modes_on(device):
            raise InputError(f"backend {backend.name} doesn't run on {devices}; use native")
        raise InputError(
            f"backend {backend.name} can't run mode {mode} on {devices}; there it has "
            f"{', '.join(backend.modes_on(device))}"
        )


def require_runtime(backend: Backend) -> None:
    """Refuses to run what this package only prices.

    Raises:
        InputError: says what to do instead.
    """
    if not backend.runs_here:
        raise InputError(
            f"plans of backend {backend.name} are priced here and not run; plan on paper with ",
            Setting("cluster", "NAME"),
            ", or use ",
            Setting("backend", "native"),
        )


def find_backend(name: str) -> Backend:
    """A backend by name.

    Raises:
        InputError: there is none of that name.
    """
    if name not in BACKENDS:
        raise InputError(f"unknown backend {name!r}; there is {', '.join(BACKENDS)}")
    return BACKENDS[name]
