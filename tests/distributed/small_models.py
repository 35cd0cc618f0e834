"""Real diffusers classes with small configs, and plans for them."""

from ditplan.profiles.configuration import PipeFusion, TaylorSeer
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import ExecutionPlan, PlannedModel, bare_plan
from ditplan.profiles.workload import Workload
from ditplan.runtime.models.inspection import inspect_configs
from ditplan.testing.small_models import PARTS, SCHEDULER, UNEVEN, VAE, transformers

__all__ = ["SCHEDULER", "VAE", "plan_for", "small_flux", "small_sd3", "workload"]
SD3, FLUX = (transformers(*UNEVEN)[name] for name in ("sd3", "flux"))


def small_sd3(**changes: object) -> ModelSpec:
    """Three blocks of five heads, so that nothing divides by 2, 3 or 4."""
    return inspect_configs("small-sd3", SD3 | changes, VAE, SCHEDULER, 0)


def small_flux(**changes: object) -> ModelSpec:
    """Two double and two single blocks of five heads, with guidance as an input."""
    return inspect_configs("small-flux", FLUX | changes, *PARTS["flux"], 0)


def workload(**changes: object) -> Workload:
    """63 image tokens and 7 text tokens of `small_sd3` or `small_flux`, with guidance."""
    fields = {
        "height": 28,
        "width": 36,
        "steps": 3,
        "passes": 2,
        "text_tokens": 7,
        "dtype": "float32",
    }
    return Workload.model_validate(fields | changes)


def plan_for(
    spec: ModelSpec,
    mesh: Mesh,
    work: Workload,
    placement: tuple[int, ...] | None = None,
    pipefusion: PipeFusion | None = None,
    token_shares: tuple[int, ...] | None = None,
    step_cache: TaylorSeer | None = None,
) -> ExecutionPlan:
    """A plan as `tune` writes it, without numbers."""
    return bare_plan(
        PlannedModel.of_spec(spec),
        work,
        mesh,
        placement=placement,
        pipefusion=pipefusion,
        token_shares=token_shares,
        step_cache=step_cache,
    )
