"""What the process of a command that starts ranks imports itself."""

from pathlib import Path

from ditplan.profiles.catalog import find_model
from ditplan.profiles.mesh import Mesh
from tests.distributed.small_models import plan_for
from tests.imported_modules import PLANNERS_OWN, RANKS_OWN, imported_by, libraries

MOST_MODULES = 500


def test_a_run_leaves_torch_and_diffusers_to_its_ranks(tmp_path: Path) -> None:
    spec = find_model("sd3-tiny")
    work = spec.defaults.model_copy(update={"steps": 2, "dtype": "float32"})
    made = plan_for(spec, Mesh(cfg=2), work).model_copy(update={"on_mismatch": "warn"})
    plan = made.save(tmp_path / "plan.json")
    modules = imported_by(
        ("run", "--plan", plan, "--prompt", "a red circle", "--out", "red.png"), tmp_path
    )
    assert (tmp_path / "red.png").exists()
    assert libraries(modules) & (RANKS_OWN | PLANNERS_OWN) == set()
    assert len(modules) <= MOST_MODULES
