"""Jobs of two ranks on two machines, as real launchers start them: `attach` finds their places."""

import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch

from ditplan.profiles.configuration import PipeFusion
from ditplan.profiles.locations import Location
from ditplan.profiles.mesh import Mesh
from ditplan.runtime.groups import GroupCache, RankContext
from ditplan.runtime.ranks.devices import device_name
from tests.cluster import slurm
from tests.cluster.machines import HOSTS, ROOT, SEARCH_PATH, Machines
from tests.distributed.rank_tasks import latents
from tests.distributed.small_models import plan_for, small_sd3, workload
from tests.distributed.test_production import made_for

pytestmark = [pytest.mark.cluster, pytest.mark.thorough]

PLAN = "/tmp/job/plan.json"
PORT = "29511"
LONGEST_S = 600.0
JOB = (sys.executable, "-m", "tests.distributed.attach_job", PLAN)
SETTINGS = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MASTER_PORT": PORT}
AT_FIRST_HOST = SETTINGS | {"MASTER_ADDR": HOSTS[0]}


def write_plan(machines: Machines) -> torch.Tensor:
    """A plan of two stages, the first of them on n10 and the second on n9, on both; the latents
    that it makes, by one rank.
    """
    spec, work = small_sd3(), workload()
    here = RankContext(0, 1, torch.device("cpu"), GroupCache(0, 1))
    alone = latents(here, spec, plan_for(spec, Mesh(), work))
    assert alone is not None
    stages = PipeFusion(blocks_per_stage=(1, 2), patches=2, warmup_steps=work.steps)
    plan = plan_for(spec, Mesh(pipefusion=2), work, pipefusion=stages)
    plan = made_for(plan, {"devices": (device_name(here),) * 2, "link_kinds": ("ethernet",)})
    # of a cluster of more ranks, numbered otherwise than any launcher does
    plan = plan.model_copy(
        update={
            "configuration": replace(plan.configuration, placement=(5, 3)),
            "locations": (
                Location(rank=3, host=HOSTS[1], device=0),
                Location(rank=5, host=HOSTS[0], device=2),
            ),
        }
    )
    for name in HOSTS:
        folder = machines[name].path("/tmp/job")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        plan.save(folder / "plan.json")
    return alone


def check_job(machines: Machines, words: list[str], environment: Mapping[str, str]) -> None:
    """Starts a job from n1: each rank is where it was planned, and makes the same latents."""
    alone = write_plan(machines)
    started = machines["n1"].start(words, environment=environment, folder=str(ROOT))
    done = started.finished(LONGEST_S)
    assert done.returncode == 0, done.stderr
    rank_on = {}
    for name in HOSTS:
        (file,) = machines[name].path("/tmp/job").glob("plan.*.pt")
        rank_on[name] = int(file.suffixes[0][1:])
    assert sorted(rank_on.values()) == [0, 1]
    for name, rank in rank_on.items():
        found = torch.load(machines[name].path(f"/tmp/job/plan.{rank}.pt"))
        assert found["placement"] == (rank_on[HOSTS[0]], rank_on[HOSTS[1]])
        assert f"the plan has 2 rank(s) on {HOSTS[1]}" in found["refusal"]
        assert float((found["latents"] - alone).abs().max()) <= 1e-4


def launcher(name: str) -> str:
    """The program, which may be missing."""
    path = shutil.which(name, path=SEARCH_PATH)
    if path is None:
        pytest.skip(f"not installed: {name}")
    return path


def test_sruns_ranks_find_their_places(slurm_machines: Machines) -> None:
    # the first host of a step has rank 0
    first = "$(scontrol show hostnames $SLURM_STEP_NODELIST | head -n 1)"
    shell = f"export MASTER_ADDR={first}; exec {shlex.join(JOB)}"
    words = ["srun", "--nodes=2", "--ntasks-per-node=1", "-K", "sh", "-c", shell]
    check_job(slurm_machines, words, {**SETTINGS, **slurm.ENVIRONMENT})


def test_ranks_of_open_mpis_mpirun_find_their_places(machines: Machines) -> None:
    words = [launcher("mpirun.openmpi"), "--allow-run-as-root", "-np", "2"]
    words += ["--host", ",".join(HOSTS), "--wdir", str(ROOT)]
    for name, value in AT_FIRST_HOST.items():
        words += ["-x", f"{name}={value}"]
    check_job(machines, [*words, *JOB], {})


def test_ranks_of_mpichs_mpiexec_find_their_places(machines: Machines) -> None:
    words = [launcher("mpiexec.hydra"), "-n", "2", "-ppn", "1", "-hosts", ",".join(HOSTS)]
    words += ["-wdir", str(ROOT)]
    for name, value in AT_FIRST_HOST.items():
        words += ["-genv", name, value]
    check_job(machines, [*words, *JOB], {})
