"""A process that runs a plan again compiles nothing that an earlier one has compiled."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from ditplan.profiles.errors import PlanWarning
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.plan import ExecutionPlan
from ditplan.runtime.ranks.pool import RankPool
from tests.distributed.kept_code_tasks import Made, made_with_kept_code
from tests.distributed.small_models import plan_for, small_sd3, workload

ROOT = Path(__file__).parents[2]


def made_anew(folder: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> list[Made]:
    """What new ranks make of a plan, with nothing but the user's cache folder left of others."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder / f"inductor-{number}"))
    plan = plan_for(small_sd3(), Mesh(ulysses=2), workload()).configured(mode="compile")
    plan = plan.model_copy(update={"fallback": "refuse"})
    with RankPool(None, 2, "cpu") as pool:
        return pool.run(made_with_kept_code, small_sd3(), plan, timeout_s=600)


@pytest.mark.thorough
def test_new_ranks_of_a_plan_take_the_code_of_earlier_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", PlanWarning)
        first = made_anew(tmp_path, 1, monkeypatch)
        again = made_anew(tmp_path, 2, monkeypatch)
    # ranks of one host find each other's code as well
    assert sum(made.misses for made in first) > 0
    assert all(made.misses == 0 and made.hits > 0 for made in again)
    assert all(one.latents.equal(other.latents) for one, other in zip(first, again, strict=True))
    files = sorted((tmp_path / "cache" / "ditplan" / "compiled").iterdir())
    assert len(files) == 2


ONE_RANK = """
import torch
from tests.distributed.kept_code_tasks import made_with_kept_code
from tests.distributed.test_kept_code import plan_of_one_rank
from tests.distributed.small_models import small_sd3
from ditplan.runtime.groups import GroupCache, RankContext

if __name__ == "__main__":
    context = RankContext(0, 1, torch.device("cpu"), GroupCache(0, 1))
    made = made_with_kept_code(context, small_sd3(), plan_of_one_rank())
    print(made.misses, made.hits, made.latents.double().sum().item())
"""


def plan_of_one_rank() -> ExecutionPlan:
    """Its attention is an operator of the plan's own in compiled code."""
    plan = plan_for(small_sd3(), Mesh(), workload())
    made = plan.configured(mode="compile", attention="cpu")
    return made.model_copy(update={"fallback": "refuse"})


def test_a_new_process_of_a_plan_of_one_rank_compiles_nothing(tmp_path: Path) -> None:
    said = []
    for number in range(2):
        done = subprocess.run(
            [sys.executable, "-c", ONE_RANK],
            cwd=ROOT,
            env={
                **os.environ,
                "XDG_CACHE_HOME": str(tmp_path / "cache"),
                "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / f"inductor-{number}"),
            },
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout.split())
    (misses, hits, total), (misses_again, hits_again, total_again) = said
    assert (int(misses) > 0, int(hits)) == (True, 0)
    assert (int(misses_again), int(hits_again) > 0) == (0, True)
    assert total == total_again
