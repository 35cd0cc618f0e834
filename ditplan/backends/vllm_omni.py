"""vLLM-Omni's server as a backend (0.30.0): priced and exported, run by its launcher."""

from ditplan.backends.elsewhere import ElsewhereBackend, sequences_of
from ditplan.exporting.engines import export_vllm_omni
from ditplan.profiles.capabilities import Capabilities
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.cost_constants import CostConstants
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.workload import Workload

CAPABILITIES = Capabilities(
    name="vllm-omni",
    axes=("dp", "cfg", "ring", "ulysses"),
    modes=("eager", "compile"),
    cpu_modes=(),
    # those of its registry (`diffusion/registry.py`)
    families=("flux", "flux2", "qwen-image", "sd3", "wan", "z-image"),
    # those of its transformers that have a `_sp_plan`: without one it warns, and splits nothing
    split_families=("flux2", "qwen-image", "wan", "z-image"),
    runs="elsewhere",
)
COSTS = CostConstants(sends_together=False, pushes=False)
"""Not measured: as `native`, but that q, k, v and output travel apart by a collective library."""


def rules(configuration: Configuration, model: ModelSpec, workload: Workload) -> str | None:
    """Heads that don't divide take `--ulysses-mode advanced_uaa`, under which a ring needs pieces
    of one length (`diffusion/attention/parallel/ulysses.py`).
    """
    mesh = configuration.mesh
    if mesh.ring == 1 or model.heads % mesh.ulysses == 0:
        return None
    ranks = mesh.sequence_parallel
    for name, length in sequences_of(model, workload).items():
        if length % ranks:
            return (
                f"vllm-omni can't pass keys of unequal pieces on in a ring where ulysses "
                f"{mesh.ulysses} doesn't divide the {model.heads} heads of {model.name}, and "
                f"{length} {name} tokens aren't divisible by {ranks}; use ring 1"
            )
    return None


def choice(model: ModelSpec, workload: Workload, gpus: int) -> Mesh:
    """One GPU a picture: all others become copies (`resolve_data_parallel_size`)."""
    return Mesh()


VLLM_OMNI = ElsewhereBackend(CAPABILITIES, COSTS, export_vllm_omni, rules, choice)
