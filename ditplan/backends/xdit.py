"""xDiT as a backend: priced and exported; its own launcher runs it."""

from ditplan.backends.elsewhere import ElsewhereBackend, why_not_divided
from ditplan.exporting.engines import export_xdit
from ditplan.profiles.capabilities import Capabilities
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.cost_constants import CostConstants, ModeConstants
from ditplan.profiles.mesh import AXES
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.workload import Workload

MOST_CFG = 2

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


def rules(configuration: Configuration, model: ModelSpec, workload: Workload) -> str | None:
    """Guidance for two ranks, equal heads (`xfuser/model_executor/layers/usp.py`), and stages of
    all blocks, which it takes as they are given.
    """
    if configuration.mesh.cfg > MOST_CFG:
        return f"xdit shares guidance out to 2 ranks, and cfg is {configuration.mesh.cfg}; use 2"
    part = configuration.pipefusion
    if part and sum(part.blocks_per_stage) != model.block_count:
        blocks = " + ".join(map(str, part.blocks_per_stage))
        return (
            f"the stages have {blocks} blocks, and {model.name} has {model.block_count}; divide "
            "all of them"
        )
    return why_not_divided("xdit", configuration, model)


XDIT = ElsewhereBackend(CAPABILITIES, COSTS, export_xdit, rules)
