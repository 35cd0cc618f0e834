"""What commands import: each what it needs. Modules are counted, not seconds."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ditplan.profiles.catalog import find_model
from ditplan.profiles.mesh import Mesh
from ditplan.runtime.ranks import gpu_count
from ditplan.runtime.ranks.environment import environment
from tests.distributed.small_models import plan_for, workload
from tests.imported_modules import PLANNERS_OWN, RANKS_OWN, imported_by, libraries

SAYING = 450
RUNNING = 500
PLANNING = 1150
"""How many modules a command may load that only says something, that runs a plan, that plans."""

ON_PAPER = ("--model", "sd3-tiny", "--cluster", "2xh100-nvlink")


@pytest.mark.parametrize(
    "words",
    [("--help",), ("--version",), ("tune", "--help"), ("run", "--help"), ("list", "models")],
    ids=" ".join,
)
def test_what_only_says_something_loads_no_library_of_planner_or_ranks(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    modules = imported_by(words, tmp_path)
    assert libraries(modules) & (RANKS_OWN | PLANNERS_OWN) == set()
    assert len(modules) <= SAYING


@pytest.mark.parametrize("command", ["tune", "simulate"])
def test_what_plans_on_paper_loads_no_library_of_ranks(command: str, tmp_path: Path) -> None:
    modules = imported_by((command, *ON_PAPER), tmp_path)
    assert libraries(modules) & RANKS_OWN == set()
    assert len(modules) <= PLANNING


@pytest.mark.parametrize("words", [("show",), ("run", "--prompt", "x", "--out", "x.png")])
def test_what_takes_a_plan_and_starts_no_rank_loads_no_library_of_planner_or_ranks(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    plan = plan_for(find_model("sd3-tiny"), Mesh(cfg=2), workload()).save(tmp_path / "plan.json")
    asked = (*words, plan) if words == ("show",) else (*words, "--plan", plan, "--dry-run")
    modules = imported_by(asked, tmp_path)
    assert libraries(modules) & (RANKS_OWN | PLANNERS_OWN) == set()
    assert len(modules) <= RUNNING


@pytest.mark.parametrize("module", ["running", "runtime.workers", "runtime.ranks.pool"])
def test_who_sends_work_to_ranks_loads_none_of_their_libraries(module: str) -> None:
    asked = f"import sys, ditplan.{module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", asked], capture_output=True, text=True, check=True, timeout=300
    )
    modules = set(done.stdout.split())
    assert libraries(modules) & (RANKS_OWN | PLANNERS_OWN) == set()
    assert len(modules) <= RUNNING


def test_gpus_are_counted_as_torch_does() -> None:
    assert gpu_count.gpus_here(environment()) == torch.cuda.device_count()
    assert gpu_count.is_for_cpus() == (torch.version.cuda is None and torch.version.hip is None)
