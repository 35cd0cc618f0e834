"""diffusers' context parallelism as a backend: priced, and exported as a script."""

from dataclasses import replace
from typing import Any

from ditplan.exporting.scripts import export_diffusers
from ditplan.profiles.backend import Exported, Prepared
from ditplan.profiles.capabilities import Capabilities, require_ranks_to_run_in
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.cost_constants import CostConstants
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import ExecutionPlan
from ditplan.profiles.workload import Workload

CAPABILITIES = Capabilities(
    name="diffusers",
    axes=("ring", "ulysses"),
    modes=("eager", "compile"),
    cpu_modes=(),
    families=None,
    # those of its transformers that have a `_cp_plan`
    split_families=("flux", "flux2", "qwen-image", "wan"),
    runs="elsewhere",
)
_USUAL = CostConstants()
COSTS = CostConstants(
    sends_together=False,
    pushes=False,
    gathers_keys=True,
    modes=_USUAL.modes | {"eager": replace(_USUAL.modes["eager"], exchange_launches=142.0)},
)
"""q, k, v and output travel apart, keys are gathered first. What an exchange launches eagerly: so
that FLUX, 1024px, over Ulysses-2 takes about its measured 3.83 s (two H100, 20 steps); all else is
as in `native`."""


class Diffusers:
    """What a script of diffusers' runs."""

    def capabilities(self) -> Capabilities:
        """Rings and Ulysses."""
        return CAPABILITIES

    def costs(self) -> CostConstants:
        """Ours, but for its exchanges."""
        return COSTS

    def why_unsupported(
        self, configuration: Configuration, model: ModelSpec, workload: Workload
    ) -> str | None:
        """Nothing but what data says."""
        return CAPABILITIES.why_unsupported(configuration, model)

    def prepare(self, pipeline: Any, plan: ExecutionPlan, context: Any) -> Prepared:
        """Refuses to.

        Raises:
            InputError: it runs elsewhere.
        """
        require_ranks_to_run_in(CAPABILITIES)
        raise AssertionError("it runs elsewhere")

    def emit(self, plan: ExecutionPlan, file: str) -> Exported:
        """A script that torchrun starts."""
        return export_diffusers(plan, file)


DIFFUSERS = Diffusers()
