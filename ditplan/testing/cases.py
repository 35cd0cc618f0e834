"""What a backend claims, as configurations of small models."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, get_args

from ditplan.planner.space.enumerate import evenly_staged, patching_violation
from ditplan.planner.space.legality import degrees_within, schedule_of, violation
from ditplan.profiles.backends import LoadedBackend
from ditplan.profiles.capabilities import Capabilities
from ditplan.profiles.configuration import Configuration, PipeFusion, TaylorSeer
from ditplan.profiles.fingerprint import Fingerprint
from ditplan.profiles.locations import Location
from ditplan.profiles.mesh import AXES, Mesh, placement_of
from ditplan.profiles.model import Mode, ModelSpec
from ditplan.profiles.plan import ExecutionPlan, PlannedModel, Quality, bare_plan
from ditplan.profiles.workload import Dtype, Workload
from ditplan.testing.small_models import (
    EVEN,
    FAMILIES,
    STEPS,
    UNEVEN,
    small_model,
    small_workload,
)

EAGER: Mode = "eager"


@dataclass(frozen=True)
class Case:
    """A configuration of a small model, and how long its texts are."""

    spec: ModelSpec
    text_tokens: int
    configuration: Configuration

    @property
    def workload(self) -> Workload:
        """A picture for each rank of dp."""
        return small_workload(self.spec, self.text_tokens, batch=self.configuration.mesh.dp)

    def plan(self, backend: str) -> ExecutionPlan:
        """The plan of it, without numbers, on any devices."""
        own = self.configuration
        some = tuple(
            Location(rank=rank, host="localhost", device=rank) for rank in sorted(own.placement)
        )
        return bare_plan(PlannedModel.of_spec(self.spec), self.workload, Mesh()).model_copy(
            update={
                "backend": backend,
                "configuration": own,
                "quality": Quality(exact=not (own.pipefusion or own.step_cache)),
                "fingerprint": Fingerprint(
                    cluster="any",
                    devices=("any",) * own.mesh.size,
                    link_kinds=(),
                    software={},
                ),
                "locations": some if max(own.placement) >= own.mesh.size else (),
            }
        )

    def changed(self, **parts: Any) -> "Case":
        """The same with other parts of its configuration."""
        return replace(self, configuration=replace(self.configuration, **parts))

    def why_unsupported(self, backend: LoadedBackend, dtype: Dtype = "float32") -> str | None:
        """What the backend says against it."""
        work = self.workload.model_copy(update={"dtype": dtype})
        return backend.why_unsupported(self.configuration, self.spec, work)


def families_of(capabilities: Capabilities) -> tuple[str, ...]:
    """The families that a backend claims; one without a small model is no family of ditplan's."""
    claimed = FAMILIES if capabilities.families is None else capabilities.families
    return tuple(family for family in FAMILIES if family in claimed)


@cache
def models_of(family: str) -> tuple[tuple[ModelSpec, int], ...]:
    """Two small models with their text tokens: one that nothing divides, and one that is divided by
    2 and 3.
    """
    return tuple(
        (small_model(family, heads=heads, text_tokens=text), text) for heads, text in (UNEVEN, EVEN)
    )


def meshes_of(axes: tuple[str, ...], ranks: int) -> Iterator[Mesh]:
    """All meshes of so many ranks over some axes."""
    for degrees in degrees_within(ranks, axes, {}).tolist():
        mesh = Mesh(**dict(zip(AXES, degrees, strict=True)))
        if mesh.size == ranks:
            yield mesh


def cases_of(backend: LoadedBackend, family: str, mesh: Mesh, mode: Mode = EAGER) -> list[Case]:
    """What models and claims allow of a mesh; PipeFusion with as many patches as stages, and every
    step a warm-up step, which is exact.
    """
    found, can = [], backend.capabilities
    for spec, text in models_of(family):
        case = Case(spec, text, Configuration(mesh, placement_of(mesh), mode))
        if violation(mesh, spec, case.workload, can, approximate=True):
            continue
        stages = mesh.pipefusion
        part = evenly_staged(mesh, spec, stages, STEPS, schedule_of(spec, can))
        if part and patching_violation(mesh, spec, case.workload, stages, STEPS):
            continue
        found.append(case.changed(pipefusion=part))
    return found


def accepted(
    backend: LoadedBackend, family: str, mesh: Mesh, mode: Mode = EAGER, **parts: Any
) -> Case | None:
    """The first of these, with other parts, that the backend accepts: the uneven one if it can."""
    for case in cases_of(backend, family, mesh, mode):
        changed = case.changed(**parts)
        if changed.why_unsupported(backend) is None:
            return changed
    return None


def unclaimed(backend: LoadedBackend) -> Iterator[Case]:
    """Cases that go beyond what the backend claims in one thing each."""
    can = backend.capabilities
    for family in FAMILIES:
        if can.families is not None and family not in can.families:
            yield _alone(family)
    alone = _alone(families_of(can)[0])
    for axis in AXES:
        if axis not in can.axes:
            mesh = Mesh(**{axis: 2})
            part = evenly_staged(mesh, alone.spec, 2, 1)
            yield alone.changed(mesh=mesh, placement=(0, 1), pipefusion=part)
    for mode in get_args(Mode):
        if mode not in can.modes:
            yield alone.changed(mode=mode)
    yield from _unclaimed_parts(can, alone)


def _unclaimed_parts(can: Capabilities, alone: Case) -> Iterator[Case]:
    split = alone.changed(mesh=Mesh(ulysses=2), placement=(0, 1))
    if not can.shards_weights:
        yield split.changed(weights="sharded")
    if not can.balances:
        yield split.changed(token_shares=(2, 1))
    if not can.splits_vae:
        yield split.changed(vae_parallel=2)
    if not can.caches_steps:
        yield alone.changed(step_cache=TaylorSeer(interval=2))
    if not can.folds_skips:
        blocks = (2, alone.spec.block_count - 2)
        part = PipeFusion(blocks_per_stage=blocks, patches=2, warmup_steps=1, schedule="folded")
        staged = alone.changed(mesh=Mesh(pipefusion=2), placement=(0, 1))
        yield staged.changed(pipefusion=part)


def _alone(family: str) -> Case:
    spec, text = models_of(family)[1]
    return Case(spec, text, Configuration(Mesh(), (0,)))
