"""SGLang's diffusion server as a backend (0.5.23): priced and exported, run by its launcher."""

from ditplan.backends.elsewhere import ElsewhereBackend, why_not_divided
from ditplan.exporting.engines import export_sglang
from ditplan.profiles.capabilities import Capabilities
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.cost_constants import CostConstants
from ditplan.profiles.family import family_of
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.workload import Workload

CAPABILITIES = Capabilities(
    name="sglang",
    axes=("dp", "cfg", "ring", "ulysses"),
    modes=("eager", "compile"),
    cpu_modes=(),
    # those of its pipelines (`runtime/pipelines/`)
    families=("flux", "flux2", "hunyuan-video", "qwen-image", "sana", "sd3", "wan", "z-image"),
    # SANA and SD3 have none of its `USPAttention`: each rank would compute the whole sequence
    split_families=("flux", "flux2", "hunyuan-video", "qwen-image", "wan", "z-image"),
    runs="elsewhere",
)
COSTS = CostConstants(sends_together=False, pushes=False)
"""Not measured: as `native`, but that q, k, v and output travel apart by a collective library."""


def rules(configuration: Configuration, model: ModelSpec, workload: Workload) -> str | None:
    """Equal heads (`runtime/layers/usp.py`)."""
    return why_not_divided("sglang", configuration, model)


def choice(model: ModelSpec, workload: Workload, gpus: int) -> Mesh:
    """All GPUs: cfg 2 where the model has guidance and they are even, then Ulysses; a sequence of
    two ranks has its keys and values gathered, which is a ring here (`ServerArgs`,
    `_adjust_parallelism`).
    """
    # it goes by the model, whatever the request
    is_guided = family_of(model.transformer_class).guidance != "embedded"
    cfg = 2 if is_guided and model.defaults.guidance and gpus % 2 == 0 else 1
    ranks = gpus // cfg
    return Mesh(cfg=cfg, ring=2) if ranks == 2 else Mesh(cfg=cfg, ulysses=ranks)


SGLANG = ElsewhereBackend(CAPABILITIES, COSTS, export_sglang, rules, choice)
