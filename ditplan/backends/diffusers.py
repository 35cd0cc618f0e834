"""diffusers' context parallelism as a backend: run in ranks, and exported as a script."""

from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from ditplan.backends.elsewhere import require_same_mesh, sequences_of
from ditplan.exporting.scripts import export_diffusers
from ditplan.profiles.backend import Exported, Prepared
from ditplan.profiles.capabilities import Capabilities
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.context_parallel import why_not_split
from ditplan.profiles.cost_constants import CostConstants
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import ExecutionPlan
from ditplan.profiles.workload import Workload

CAPABILITIES = Capabilities(
    name="diffusers",
    axes=("ring", "ulysses"),
    modes=("eager", "compile"),
    cpu_modes=("eager",),
    families=None,
    # those of its transformers that have a `_cp_plan`
    split_families=("flux", "flux2", "qwen-image", "wan"),
    runs="in ranks",
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


def rules(configuration: Configuration, model: ModelSpec, workload: Workload) -> str | None:
    """For sizes that don't divide, and for rings."""
    mesh = configuration.mesh
    if mesh.ring > 1 and workload.dtype == "float32":
        return (
            f"ring{mesh.ring} of diffusers needs attention kernels that give their log-sum-exp: "
            "those of GPUs, for half precision; leave ring at 1, or use bfloat16"
        )
    lengths = sequences_of(model, workload)
    why = why_not_split(model.heads, lengths, mesh.ring, mesh.ulysses)
    return why and f"backend diffusers: {why}"


class Diffusers:
    """What `enable_parallelism` with a `ContextParallelConfig` runs."""

    def capabilities(self) -> Capabilities:
        """Rings and Ulysses."""
        return CAPABILITIES

    def costs(self) -> CostConstants:
        """Ours, but for its exchanges."""
        return COSTS

    def why_unsupported(
        self, configuration: Configuration, model: ModelSpec, workload: Workload
    ) -> str | None:
        """Its own rules for sizes that don't divide, and for rings."""
        why = CAPABILITIES.why_unsupported(configuration, model)
        return why or rules(configuration, model, workload)

    def prepare(self, pipeline: Any, plan: ExecutionPlan, context: Any) -> Prepared:
        """As `ditplan.runtime.context_parallel.context_parallelize`."""
        from ditplan.runtime.context_parallel import context_parallelize

        undo: ExitStack = context_parallelize(pipeline, plan, context, context.watch)
        return Prepared(pipeline, undo.close)

    def emit(self, plan: ExecutionPlan, file: str) -> Exported:
        """A script that torchrun starts.

        Raises:
            InputError: it would refuse the plan's mesh.
        """
        require_same_mesh(CAPABILITIES, rules, plan, file)
        return export_diffusers(plan, file)


DIFFUSERS = Diffusers()
