"""Plans for launchers and engines: a backend writes its own words, the others are here."""

from collections.abc import Callable

from ditplan.exporting.engine_files import export_sglang_config, export_vllm_deploy
from ditplan.exporting.kubernetes import export_jobset, export_kubernetes
from ditplan.exporting.launchers import export_mpirun, export_slurm, export_torchrun
from ditplan.profiles.backend import Exported
from ditplan.profiles.backends import backend_names, find_backend
from ditplan.profiles.errors import InputError, Setting, one_line
from ditplan.profiles.plan import ExecutionPlan

LAUNCHERS: dict[str, Callable[[ExecutionPlan, str], Exported]] = {
    "torchrun": export_torchrun,
    "mpirun": export_mpirun,
    "slurm": export_slurm,
    "kubernetes": export_kubernetes,
    "jobset": export_jobset,
}
FILES: dict[str, tuple[str, Callable[[ExecutionPlan, str], Exported]]] = {
    "sglang-config": ("sglang", export_sglang_config),
    "vllm-omni-deploy": ("vllm-omni", export_vllm_deploy),
}
"""Configuration files, each with the backend that can say the same by flags."""


def targets() -> tuple[str, ...]:
    """All that a plan can be exported to: launchers, the installed backends and their files."""
    return tuple(dict.fromkeys((*LAUNCHERS, *backend_names(), *FILES)))


def export(plan: ExecutionPlan, to: str, name: str) -> Exported:
    """What a launcher or engine needs to do what a plan says; `name` is the plan's file.

    Raises:
        InputError: there is none of that name, or it can't do that; says what would be right.
    """
    if own := LAUNCHERS.get(to):
        return own(plan, name)
    if to in FILES:
        backend, file = FILES[to]
        # what it can't do by flags it can't do by a file
        find_backend(backend).plugin.emit(plan, name)
        return file(plan, name)
    if to not in backend_names():
        given = Setting("to", one_line(to, 60))
        raise InputError(given, f": there are {', '.join(targets())}")
    return find_backend(to).plugin.emit(plan, name)
