"""A backend that says what would run, and runs nothing."""

from typing import Any

from ditplan.backends.native import CAPABILITIES as OF_NATIVE
from ditplan.backends.native import COSTS
from ditplan.exporting.exported import digest_of_plan
from ditplan.profiles.backend import Exported, Prepared
from ditplan.profiles.capabilities import Capabilities
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.cost_constants import CostConstants
from ditplan.profiles.errors import InputError
from ditplan.profiles.mesh import AXES
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import ExecutionPlan
from ditplan.profiles.workload import Workload

CAPABILITIES = OF_NATIVE.model_copy(update={"name": "dry-run", "runs": "never"})


class DryRun:
    """It is priced as what it would run: `native`."""

    def capabilities(self) -> Capabilities:
        """Those of `native`, without running it."""
        return CAPABILITIES

    def costs(self) -> CostConstants:
        """Those of `native`."""
        return COSTS

    def why_unsupported(
        self, configuration: Configuration, model: ModelSpec, workload: Workload
    ) -> str | None:
        """Nothing but what data says."""
        return CAPABILITIES.why_unsupported(configuration, model)

    def prepare(self, pipeline: Any, plan: ExecutionPlan, context: Any) -> Prepared:
        """Refuses to.

        Raises:
            InputError: it runs nothing.
        """
        raise InputError(
            "the plan is of backend dry-run, which runs nothing: `ditplan run --plan FILE` says "
            "what would run; tune with backend native for a plan that runs"
        )

    def emit(self, plan: ExecutionPlan, file: str) -> Exported:
        """What each rank would run, in lines for people."""
        own = plan.configuration
        lines = [
            f"dry run of {file} (digest {digest_of_plan(plan)}): nothing runs",
            f"{plan.model.name}: {plan.workload}",
            f"{own.mesh.size} rank{'s' if own.mesh.size > 1 else ''}, {own}",
            *(rank_text(plan, place) for place in range(own.mesh.size)),
            *groups_of(plan),
        ]
        if plan.prediction:
            lines.append(f"predicted {plan.prediction.latency_s:.4g} s of denoising")
        return Exported("dry-run", "\n".join(lines) + "\n", ())


def rank_text(plan: ExecutionPlan, place: int) -> str:
    """What the rank at a coordinate of the mesh runs, and where."""
    rank = plan.configuration.placement[place]
    where = {one.rank: f" on {one.host}, device {one.device}" for one in plan.locations}
    coordinate = zip(AXES, plan.mesh.coordinates()[place], plan.mesh.degrees, strict=True)
    split = [f"{axis} {index}" for axis, index, degree in coordinate if degree > 1]
    blocks = plan.blocks_of(rank)
    if blocks is not None:
        split.append(f"blocks {', '.join(map(str, blocks))}")
    return f"rank {rank}{where.get(rank, '')}: {', '.join(split) or 'all of it'}"


def groups_of(plan: ExecutionPlan) -> list[str]:
    """The groups of ranks that exchange along each split axis."""
    found = []
    for axis, degree in zip(AXES, plan.mesh.degrees, strict=True):
        if degree > 1:
            groups = plan.mesh.groups(plan.configuration.placement, (axis,))
            found.append(f"{axis} among {', '.join(map(str, groups))}")
    return found


DRY_RUN = DryRun()
