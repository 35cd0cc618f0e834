"""A process that runs a plan again compiles nothing that an earlier one has compiled."""

import warnings
from pathlib import Path

import pytest

from ditplan.profiles.errors import PlanWarning
from ditplan.profiles.mesh import Mesh
from ditplan.runtime.ranks.pool import RankPool
from tests.distributed.kept_code_tasks import Made, made_with_kept_code
from tests.distributed.small_models import plan_for, small_sd3, workload


def made_anew(folder: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> list[Made]:
    """What new ranks make of a plan, with nothing but the user's cache folder left of others."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder / f"inductor-{number}"))
    plan = plan_for(small_sd3(), Mesh(ulysses=2), workload()).configured(mode="compile")
    plan = plan.model_copy(update={"fallback": "refuse"})
    with RankPool(None, 2, "cpu") as pool:
        return pool.run(made_with_kept_code, small_sd3(), plan, timeout_s=600)


def test_new_ranks_of_a_plan_take_the_code_of_earlier_ones_and_no_damaged_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", PlanWarning)
        first = made_anew(tmp_path, 1, monkeypatch)
        again = made_anew(tmp_path, 2, monkeypatch)
    assert all(made.misses > 0 and made.hits == 0 for made in first)
    assert all(made.misses == 0 and made.hits > 0 for made in again)
    assert all(one.latents.equal(other.latents) for one, other in zip(first, again, strict=True))
    files = sorted((tmp_path / "cache" / "ditplan" / "compiled").iterdir())
    assert len(files) == 2
    for file in files:
        code = bytearray(file.read_bytes())
        code[len(code) // 2] ^= 1
        file.write_bytes(code)
    with pytest.warns(PlanWarning, match="is damaged, so it isn't used"):
        damaged = made_anew(tmp_path, 3, monkeypatch)
    assert all(made.misses > 0 for made in damaged)
    assert damaged[0].latents.equal(first[0].latents)
