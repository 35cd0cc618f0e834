"""xDiT as a backend: priced and exported; its own launcher runs it."""

from typing import Any

from ditplan.exporting.engines import export_xdit
from ditplan.profiles.backend import Exported, Prepared
from ditplan.profiles.capabilities import Capabilities, require_ranks_to_run_in
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.cost_constants import CostConstants, ModeConstants
from ditplan.profiles.mesh import AXES
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import ExecutionPlan
from ditplan.profiles.workload import Workload

CAPABILITIES = Capabilities(
    name="xdit",
    axes=AXES,
    approximate_axes=("pipefusion",),
    modes=("eager", "compile"),
    cpu_modes=(),
    families=None,
    staged_families=("flux", "hunyuan-dit", "pixart", "sana", "sd3"),
    runs="elsewhere",
)
COSTS = CostConstants(
    matmul_efficiency=0.71,
    attention_efficiency=0.33,
    sends_together=False,
    pushes=False,
    sends_fresh_keys=False,
    products_beside_transfers=1.0,
    attends_beside_transfers=True,
    exchange_start_s=1.7e-5,
    stages_wait_to_send=True,
    patch_setup_s=0.0,
    text_with_every_patch=True,
    modes={
        "eager": ModeConstants(3.35, 42.0, 23.0, 5.0, 70.0),
        "compile": ModeConstants(0.57, 21.0, 23.0, 5.0, 28.0),
    },
)
"""q, k, v and output travel apart, a stage waits for what it sends, each patch carries the text.
The numbers are fitted to those published latencies that are marked `fit` in
benchmarks/published/latencies.csv (`python -m benchmarks.planner_published --fit`), the
efficiencies to those on H100: devices with shares of their own have them in their cluster's file.
"""


class Xdit:
    """What xDiT's own launcher runs."""

    def capabilities(self) -> Capabilities:
        """Its parallelisms, and the families of its pipelines with stages."""
        return CAPABILITIES

    def costs(self) -> CostConstants:
        """Those that were fitted to published latencies."""
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
        """A command for a script that reads xDiT's arguments."""
        return export_xdit(plan, file)


XDIT = Xdit()
