"""This package's own runtime as a backend."""

from contextlib import ExitStack
from typing import Any

from ditplan.exporting.job_script import export_native
from ditplan.profiles.backend import Exported, Prepared
from ditplan.profiles.capabilities import Capabilities
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.cost_constants import CostConstants
from ditplan.profiles.mesh import AXES
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import ExecutionPlan
from ditplan.profiles.workload import Workload

CAPABILITIES = Capabilities(
    name="native",
    axes=AXES,
    approximate_axes=("pipefusion",),
    modes=("eager", "compile", "graph", "compile+graph"),
    cpu_modes=("eager", "compile"),
    families=None,
    balances=True,
    folds_skips=True,
    shards_weights=True,
    caches_steps=True,
    splits_vae=True,
    chooses_kernels=True,
    loads_parts=True,
    runs="in ranks",
)
COSTS = CostConstants()


class Native:
    """Exchanges, compiles and captures inside the pipeline's own call."""

    def capabilities(self) -> Capabilities:
        """All there is."""
        return CAPABILITIES

    def costs(self) -> CostConstants:
        """Those that the cost model was fitted with."""
        return COSTS

    def why_unsupported(
        self, configuration: Configuration, model: ModelSpec, workload: Workload
    ) -> str | None:
        """Nothing but what data says."""
        return CAPABILITIES.why_unsupported(configuration, model)

    def prepare(self, pipeline: Any, plan: ExecutionPlan, context: Any) -> Prepared:
        """As `ditplan.runtime.native.parallelize`."""
        from ditplan.runtime.native import parallelize

        undo: ExitStack = parallelize(pipeline, plan, context, context.watch)
        return Prepared(pipeline, undo.close)

    def emit(self, plan: ExecutionPlan, file: str) -> Exported:
        """A script that a launcher starts, as `export --to torchrun` asks for."""
        return export_native(plan, file)


NATIVE = Native()
