"""A task's configurations as the parameters of Optuna trials, and what parameters stand for."""

from collections.abc import Iterable, Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import Trial

from ditplan.planner.network.topology import Topology
from ditplan.planner.search.pricing import cost_model_of, price_choice, space_of
from ditplan.planner.search.ranking import PricedCandidate
from ditplan.planner.space.candidate import Choice
from ditplan.planner.space.enumerate import why_illegal, why_no_setting
from ditplan.planner.space.placement import placements
from ditplan.planner.task import Task
from ditplan.profiles.configuration import Configuration, PipeFusion, TaylorSeer
from ditplan.profiles.mesh import Mesh

PATCHING = ("patches", "warmup")
STEP_CACHE, NO_CACHE = "step_cache", "none"

Order = tuple[str, ...]


def parameters_of(candidate: Configuration, axes: Iterable[str]) -> dict[str, object]:
    """A candidate as a trial's parameters, with PipeFusion's settings where it has them and a step
    cache where it has one.
    """
    degrees = {axis: getattr(candidate.mesh, axis) for axis in axes}
    found = {**degrees, "order": ">".join(candidate.order), "mode": candidate.mode}
    if part := candidate.pipefusion:
        found |= {"patches": part.patches, "warmup": part.warmup_steps}
    if candidate.step_cache:
        found[STEP_CACHE] = str(candidate.step_cache)
    return found


class ParameterSpace:
    """All configurations of a task as parameters, with the same distributions for all trials.

    Degrees and settings are those that occur in some legal configuration, so that not all products
    of them are legal. PipeFusion's settings are asked for where there are stages, step caches where
    there are none.
    """

    def __init__(self, task: Task, priced: Iterable[PricedCandidate]) -> None:
        """`priced` are candidates that needn't be priced again, fastest first: of those that
        differ only in their ranks the first one counts.
        """
        self._task = task
        self._topology = Topology(task.cluster)
        self._space = space_of(task, self._topology)
        self._model = cost_model_of(task, self._topology)
        self._choices = {choice.mesh: choice for choice in self._space.choices}
        self._orders = {choice.mesh: self._orders_of(choice) for choice in self._space.choices}
        self.distributions = self._distributions()
        self._priced: dict[tuple[tuple[str, object], ...], PricedCandidate] = {}
        for one in priced:
            self._priced.setdefault(_key(self.parameters(one.configuration)), one)

    def parameters(self, candidate: Configuration) -> dict[str, object]:
        """A candidate as parameters, with the first of the orders that are the same here."""
        found = parameters_of(candidate, self._task.backend.capabilities.axes)
        order = self._known_order(candidate.mesh, candidate.order) or candidate.order
        found["order"] = ">".join(order)
        if STEP_CACHE in self.distributions and candidate.pipefusion is None:
            found.setdefault(STEP_CACHE, NO_CACHE)
        return found

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """Asks a trial for all parameters that have a meaning beside the others."""
        found: dict[str, Any] = {}
        for name, distribution in self.distributions.items():
            is_staged = found.get("pipefusion", 1) > 1
            if (name in PATCHING and not is_staged) or (name == STEP_CACHE and is_staged):
                continue
            if isinstance(distribution, IntDistribution):
                low, high = distribution.low, distribution.high
                found[name] = trial.suggest_int(name, low, high, log=True)
            elif isinstance(distribution, CategoricalDistribution):
                found[name] = trial.suggest_categorical(name, distribution.choices)
        return found

    def find(self, parameters: Mapping[str, Any]) -> PricedCandidate | str:
        """The configuration that parameters stand for, with its price, or why it can't be run.

        Orders that this cluster can't tell apart stand for the same one.

        Raises:
            InputError: the cluster profile lacks something.
        """
        mesh = Mesh(**{axis: parameters[axis] for axis in self._task.backend.capabilities.axes})
        choice = self._choices.get(mesh)
        if choice is None:
            return self._why_illegal(mesh)
        order = self._known_order(mesh, tuple(parameters["order"].split(">")))
        if order is None:
            return f"{parameters['order']}: {mesh} would fill hosts unevenly"
        key = _key({**parameters, "order": ">".join(order)})
        if key not in self._priced:
            wanted = parameters.get("patches"), parameters.get("warmup")
            parts = dict.fromkeys(part for part, _ in choice.settings)
            part = next((one for one in parts if _patching(one) == wanted), None)
            if part is None and mesh.pipefusion > 1:
                allowed = ", ".join(str(patches) for patches, _ in map(_patching, parts))
                return f"{wanted[0]} patches: {mesh} is tried with {allowed} patches"
            setting = (part, parameters["mode"])
            self._priced[key] = price_choice(
                self._task,
                self._model,
                self._space,
                Choice(mesh, (setting,), (order,)),
                self._step_cache(parameters),
            )
        found = self._priced[key]
        return f"does not fit: {found.too_big}" if found.too_big else found

    def _why_illegal(self, mesh: Mesh) -> str:
        task, topology = self._task, self._topology
        gpus = task.gpus or topology.ranks
        if mesh.size > gpus:
            return f"{mesh} needs {mesh.size} GPUs, there are {gpus}"
        is_approximate = task.allowed is not None
        spec, workload, backend = task.spec, task.workload, task.backend
        return (
            why_illegal(mesh, spec, workload, None, backend, approximate=is_approximate)
            or why_no_setting(mesh, spec, workload, task.allowed, backend.capabilities)
            or f"{mesh} is not among the meshes asked for, or fills hosts unevenly"
        )

    def _orders_of(self, choice: Choice) -> tuple[Order, ...]:
        """The orders of a mesh that the cluster can tell apart."""
        placed = placements(choice.mesh, self._topology, choice.orders)
        return tuple(dict.fromkeys(order for order, _ in placed))

    def _known_order(self, mesh: Mesh, order: Order) -> Order | None:
        """Which of a mesh's orders is the same to this cluster; None if it is none of them."""
        known = self._orders[mesh]
        for other in known:
            if _split(mesh, other) == _split(mesh, order):
                return other
        for other in known:
            # what can't be told apart adds no placement
            alone = placements(mesh, self._topology, (other,))
            if len(placements(mesh, self._topology, (other, order))) == len(alone):
                return other
        return None

    def _step_cache(self, parameters: Mapping[str, Any]) -> TaylorSeer | None:
        asked = parameters.get(STEP_CACHE, NO_CACHE)
        return next((cache for cache in self._caches if str(cache) == asked), None)

    @property
    def _caches(self) -> tuple[TaylorSeer, ...]:
        allowed = self._task.allowed
        return (
            allowed.step_caches if allowed and self._task.backend.capabilities.caches_steps else ()
        )

    def _distributions(self) -> dict[str, BaseDistribution]:
        """Degrees in logs, since each doubling is a choice of its own; the others as they occur."""
        found: dict[str, BaseDistribution] = {}
        for axis in self._task.backend.capabilities.axes:
            most = max(getattr(mesh, axis) for mesh in self._choices)
            found[axis] = IntDistribution(1, most, log=True)
        orders = {">".join(order): None for known in self._orders.values() for order in known}
        found["order"] = CategoricalDistribution(sorted(orders))
        found["mode"] = CategoricalDistribution(self._task.searched_modes)
        settings = [setting for choice in self._space.choices for setting in choice.settings]
        pairs = [_patching(part) for part in dict.fromkeys(part for part, _ in settings) if part]
        for name, values in zip(PATCHING, zip(*pairs, strict=True), strict=False):
            found[name] = CategoricalDistribution(sorted(set(values)))
        if self._caches:
            found[STEP_CACHE] = CategoricalDistribution([NO_CACHE, *map(str, self._caches)])
        return found


def _patching(part: PipeFusion | None) -> tuple[int | None, int | None]:
    return (part.patches, part.warmup_steps) if part else (None, None)


def _split(mesh: Mesh, order: Order) -> Order:
    """The axes of an order that are split."""
    return tuple(axis for axis in order if getattr(mesh, axis) > 1)


def _key(parameters: Mapping[str, object]) -> tuple[tuple[str, object], ...]:
    return tuple(sorted(parameters.items()))
