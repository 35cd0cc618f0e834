"""Plans for other launchers and engines: one function for each."""

from collections.abc import Callable
from typing import Literal, get_args

from ditplan.exporting.engines import export_sglang, export_vllm_omni, export_xdit
from ditplan.exporting.exported import Exported
from ditplan.exporting.kubernetes import export_kubernetes
from ditplan.exporting.launchers import export_mpirun, export_slurm, export_torchrun
from ditplan.exporting.scripts import export_cache_dit, export_diffusers
from ditplan.profiles.plan import ExecutionPlan

Target = Literal[
    "torchrun",
    "mpirun",
    "slurm",
    "kubernetes",
    "xdit",
    "diffusers",
    "sglang",
    "vllm-omni",
    "cache-dit",
]
TARGETS: dict[Target, Callable[[ExecutionPlan, str], Exported]] = {
    "torchrun": export_torchrun,
    "mpirun": export_mpirun,
    "slurm": export_slurm,
    "kubernetes": export_kubernetes,
    "xdit": export_xdit,
    "diffusers": export_diffusers,
    "sglang": export_sglang,
    "vllm-omni": export_vllm_omni,
    "cache-dit": export_cache_dit,
}
assert tuple(TARGETS) == get_args(Target)


def export(plan: ExecutionPlan, to: Target, name: str) -> Exported:
    """What a launcher or engine needs to do what a plan says; `name` is the plan's file.

    Raises:
        InputError: it can't do that; says what to plan instead.
    """
    return TARGETS[to](plan, name)
