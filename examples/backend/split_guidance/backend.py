"""What the planner asks; imports neither torch nor what runs."""

import shlex
from typing import Any

from ditplan.backends import Capabilities, CostConstants, Exported, Prepared

CAPABILITIES = Capabilities(
    name="split-guidance",
    axes=("cfg",),
    modes=("eager",),
    cpu_modes=("eager",),
    # pipelines that make both passes as one batch
    families=("auraflow", "cogvideox", "pixart", "sd3"),
    runs="in ranks",
)
COSTS = CostConstants(pushes=False)


class SplitGuidance:
    """Each of two ranks runs one pass of guidance; predictions are gathered."""

    def capabilities(self) -> Capabilities:
        return CAPABILITIES

    def costs(self) -> CostConstants:
        return COSTS

    def why_unsupported(self, configuration: Any, model: Any, workload: Any) -> str | None:
        if why := CAPABILITIES.why_unsupported(configuration, model):
            return why
        if configuration.mesh.cfg > 2:
            return f"split-guidance has two ranks for guidance, not {configuration.mesh.cfg}: use 2"
        return None

    def prepare(self, pipeline: Any, plan: Any, context: Any) -> Prepared:
        from split_guidance.runtime import split

        return split(pipeline, plan, context)

    def emit(self, plan: Any, file: str) -> Exported:
        script = '"${SCRIPT:?set SCRIPT to a script that calls ditplan.parallelize with its plan}"'
        text = (
            "#!/usr/bin/env bash\nset -euo pipefail\n\n"
            f"exec torchrun --nproc-per-node={plan.mesh.size} {script} {shlex.quote(file)}\n"
        )
        return Exported("split-guidance", text, ())


BACKEND = SplitGuidance()
