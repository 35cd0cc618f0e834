"""The backends that are installed: found by their entry points, loaded when asked for, checked.

One that is broken is named with what is wrong, and stands in the way of no other.
"""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from ditplan.profiles.backend import Backend, Choosing
from ditplan.profiles.capabilities import Capabilities
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.cost_constants import CostConstants
from ditplan.profiles.errors import InputError, one_line
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.workload import Workload

GROUP = "ditplan.backends"
OURS = "ditplan"
OWN = {
    "native": "ditplan.backends.native:NATIVE",
    "dry-run": "ditplan.backends.dry_run:DRY_RUN",
    "xdit": "ditplan.backends.xdit:XDIT",
    "diffusers": "ditplan.backends.diffusers:DIFFUSERS",
    "sglang": "ditplan.backends.sglang:SGLANG",
    "vllm-omni": "ditplan.backends.vllm_omni:VLLM_OMNI",
    "cache-dit": "ditplan.backends.cache_dit:CACHE_DIT",
}
"""The entry points of pyproject.toml: a checkout that isn't installed has no metadata."""

LAUNCHERS = ("torchrun", "mpirun", "slurm", "kubernetes", "jobset")
"""What `export --to` takes beside backends, so that none is called so."""

METHODS = {
    "capabilities": (),
    "costs": (),
    "why_unsupported": ("configuration", "model", "workload"),
    "prepare": ("pipeline", "plan", "context"),
    "emit": ("plan", "file"),
}
"""What a backend is called with."""

LONGEST_REASON = 160
"""Of what a plug-in's error says, in characters."""


@dataclass(frozen=True)
class LoadedBackend:
    """A backend that can be used, with what it says of itself; `origin` is the distribution that
    brings it, with its version.
    """

    name: str
    origin: str
    plugin: Backend = field(repr=False)
    capabilities: Capabilities = field(repr=False)
    costs: CostConstants = field(repr=False)

    def why_unsupported(
        self, configuration: Configuration, model: ModelSpec, workload: Workload
    ) -> str | None:
        """As the plug-in's."""
        return self.plugin.why_unsupported(configuration, model, workload)

    def own_choice(self, model: ModelSpec, workload: Workload, gpus: int) -> Mesh | None:
        """The mesh that its engine takes of so many GPUs; None where it always has to be told."""
        plugin: object = self.plugin
        return plugin.own_choice(model, workload, gpus) if isinstance(plugin, Choosing) else None


@dataclass(frozen=True)
class BrokenBackend:
    """An entry point that can't be used, and why, in one line."""

    name: str
    origin: str
    why: str


@dataclass(frozen=True)
class Installed:
    """The entry points of all backends, by name, none of them loaded.

    Ours win over others of the same name; among others of one name there is no choosing.
    """

    points: Mapping[str, tuple[EntryPoint, ...]]

    @classmethod
    def of(cls, found: Iterable[EntryPoint]) -> "Installed":
        """What is found beside ours."""
        points = {name: (EntryPoint(name, value, GROUP),) for name, value in OWN.items()}
        for point in sorted(found, key=lambda one: (one.name, origin_of(one))):
            if point.dist is None or point.dist.name != OURS:
                points[point.name] = (*points.get(point.name, ()), point)
        return cls(points)

    def load(self, name: str) -> LoadedBackend:
        """A backend by its name.

        Raises:
            InputError: there is none of that name, or it is broken; says what there is.
        """
        if name not in self.points:
            given = one_line(repr(name), 60)
            raise InputError(f"unknown backend {given}; there is {', '.join(self.points)}")
        first, *others = self.points[name]
        if others and name not in OWN:
            raise InputError(_clash(name, (first, *others)))
        return _loaded(first)

    def load_all(self) -> tuple[LoadedBackend | BrokenBackend, ...]:
        """All that are installed, with those that are broken, and those whose name is taken."""
        found: list[LoadedBackend | BrokenBackend] = []
        for name, points in self.points.items():
            if name in OWN and len(points) > 1:
                others = ", ".join(map(origin_of, points[1:]))
                found.append(BrokenBackend(name, others, _clash(name, points)))
            try:
                found.append(self.load(name))
            except InputError as error:
                found.append(BrokenBackend(name, ", ".join(map(origin_of, points)), str(error)))
        return tuple(found)


def origin_of(point: EntryPoint) -> str:
    """The distribution that an entry point comes from, with its version."""
    return OURS if point.dist is None else f"{point.dist.name} {point.dist.version}"


@cache
def installed() -> Installed:
    """What is installed in this process's environment."""
    return Installed.of(entry_points(group=GROUP))


def backend_names() -> tuple[str, ...]:
    """The names of the installed backends, ours first."""
    return tuple(installed().points)


@cache
def find_backend(name: str) -> LoadedBackend:
    """A backend by name.

    Raises:
        InputError: there is none of that name, or it is broken.
    """
    return installed().load(name)


def require_supported(
    backend: LoadedBackend, configuration: Configuration, model: ModelSpec, workload: Workload
) -> None:
    """Refuses what a backend can't run.

    Raises:
        InputError: says why, and what would be right.
    """
    if why := backend.why_unsupported(configuration, model, workload):
        raise InputError(why)


def _clash(name: str, points: Iterable[EntryPoint]) -> str:
    claimed = " and ".join(map(origin_of, points))
    return f"backend {name!r} is claimed by {claimed}: rename or uninstall one of them"


def _loaded(point: EntryPoint) -> LoadedBackend:
    """What an entry point names, if it is a backend.

    Raises:
        InputError: names the plug-in and what is wrong with it.
    """
    name, origin = point.name, origin_of(point)
    plugin = f"backend {one_line(repr(name), 60)} ({origin}, {point.value})"
    try:
        found = point.load()
        capabilities, costs = _checked(found, name)
    except (Exception, SystemExit) as error:
        kind = "" if isinstance(error, _NoBackendError) else f"{type(error).__name__}: "
        why = one_line(f"{kind}{error}", LONGEST_REASON)
        raise InputError(f"{plugin} can't be used: {why}") from error
    return LoadedBackend(name, origin, found, capabilities, costs)


class _NoBackendError(Exception):
    """What an entry point names is no backend; the message says why."""


def _checked(found: object, name: str) -> tuple[Capabilities, CostConstants]:
    """What a plug-in says of itself, if it is a backend of this name."""
    if name in LAUNCHERS:
        raise _NoBackendError(
            f"plans are exported to the launcher {name} by that name; give it another"
        )
    if isinstance(found, type):
        raise _NoBackendError(f"it names the class {found.__name__}, not an object of it")
    for method, arguments in METHODS.items():
        if not callable(own := getattr(found, method, None)):
            raise _NoBackendError(f"it has no method {method}()")
        try:
            inspect.signature(own).bind(*arguments)
        except TypeError as error:
            raise _NoBackendError(f"{method}({', '.join(arguments)}): {error}") from error
    assert isinstance(found, Backend)
    capabilities, costs = found.capabilities(), found.costs()
    if not isinstance(capabilities, Capabilities):
        raise _NoBackendError(f"capabilities() gives a {type(capabilities).__name__}")
    # what was made by `model_construct` or `model_copy` was never checked
    Capabilities.model_validate(capabilities.model_dump())
    if capabilities.name != name:
        raise _NoBackendError(f"its capabilities are called {capabilities.name!r}")
    if not isinstance(costs, CostConstants):
        raise _NoBackendError(f"costs() gives a {type(costs).__name__}")
    if missing := [mode for mode in capabilities.modes if mode not in costs.modes]:
        raise _NoBackendError(f"costs() has nothing for mode {missing[0]}")
    return capabilities, costs
