"""cache-dit's context parallelism as a backend (1.5.3), without its caches: priced and exported."""

from ditplan.backends.diffusers import COSTS as OF_DIFFUSERS
from ditplan.backends.elsewhere import ElsewhereBackend, sequences_of
from ditplan.exporting.scripts import export_cache_dit
from ditplan.profiles.capabilities import Capabilities
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.context_parallel import is_uneven, why_not_split
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.workload import Workload

FAMILIES = ("cogvideox", "flux", "flux2", "hunyuan-video", "pixart", "qwen-image", "wan", "z-image")

CAPABILITIES = Capabilities(
    name="cache-dit",
    axes=("ring", "ulysses"),
    modes=("eager", "compile"),
    cpu_modes=(),
    families=None,
    # those of its planners (`distributed/transformers/`)
    split_families=FAMILIES,
    runs="elsewhere",
)
COSTS = OF_DIFFUSERS
"""Not measured: as diffusers, whose attention it takes the place of."""


def rules(configuration: Configuration, model: ModelSpec, workload: Workload) -> str | None:
    """Those of diffusers, but that no ring has unequal pieces (`distributed/core/`)."""
    mesh, lengths = configuration.mesh, sequences_of(model, workload)
    if mesh.ring > 1 and is_uneven(model.heads, lengths, mesh.ring, mesh.ulysses):
        sizes = ", ".join(f"{length} {name} tokens" for name, length in lengths.items())
        return (
            f"cache-dit divides heads and tokens equally where there is a ring, and {mesh} doesn't "
            f"divide {model.heads} heads or {sizes}; use ring 1"
        )
    why = why_not_split(model.heads, lengths, mesh.ring, mesh.ulysses)
    return why and f"backend cache-dit: {why}"


CACHE_DIT = ElsewhereBackend(CAPABILITIES, COSTS, export_cache_dit, rules)
