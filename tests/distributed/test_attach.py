"""Jobs that other launchers start: each rank gets the plan's part for where it is."""

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

from ditplan.profiles.configuration import PipeFusion
from ditplan.profiles.locations import Location
from ditplan.profiles.mesh import Mesh
from ditplan.runtime.ranks.pool import RankPool
from tests.distributed.rank_tasks import latents
from tests.distributed.small_models import plan_for, small_sd3, workload
from tests.distributed.test_production import made_for, name_here

ROOT = Path(__file__).parents[2]


def as_open_mpi(rank: int, port: int, host: str) -> dict[str, str]:
    """What Open MPI tells a rank that is alone on its host, and where ranks meet."""
    told = {
        "OMPI_COMM_WORLD_RANK": str(rank),
        "OMPI_COMM_WORLD_LOCAL_RANK": "0",
        "OMPI_COMM_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        # so that one machine is two hosts
        "SLURMD_NODENAME": host,
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    return {**os.environ, **told}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_ranks_find_their_place_by_their_host_whatever_the_launchers_order(
    ranks: RankPool, tmp_path: Path
) -> None:
    spec, work = small_sd3(), workload()
    stages = PipeFusion(blocks_per_stage=(1, 2), patches=2, warmup_steps=work.steps)
    alone = ranks.run(latents, spec, plan_for(spec, Mesh(), work), timeout_s=600)[0]
    name = ranks.run(name_here, timeout_s=600)[0]
    plan = plan_for(spec, Mesh(pipefusion=2), work, pipefusion=stages)
    plan = made_for(plan, {"devices": (name, name), "link_kinds": ("memory",)})
    # of a cluster of more: stage 0 on rank 5, which is on n2
    plan = plan.model_copy(
        update={
            "configuration": replace(plan.configuration, placement=(5, 3)),
            "locations": (
                Location(rank=3, host="n1", device=0),
                Location(rank=5, host="n2", device=2),
            ),
        }
    )
    path, port = plan.save(tmp_path / "plan.json"), free_port()
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.distributed.attach_job", str(path)],
            cwd=ROOT,
            env=as_open_mpi(rank, port, host),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, host in enumerate(("n2", "n1"))
    ]
    errors = [process.communicate(timeout=600)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], errors
    for rank in range(2):
        found = torch.load(tmp_path / f"plan.{rank}.pt")
        assert found["placement"] == (0, 1)
        assert "the plan has 2 rank(s) on n9" in found["refusal"]
        assert alone is not None
        assert float((found["latents"] - alone).abs().max()) <= 1e-4
