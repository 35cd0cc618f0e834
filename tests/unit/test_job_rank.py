"""Which rank of a job a process is, as four launchers say it."""

from typing import Any

import pytest

from ditplan.profiles.errors import InputError
from ditplan.runtime.ranks.attach import Place, locations_in_job
from ditplan.runtime.ranks.device_numbers import visible_numbers
from ditplan.runtime.ranks.job_rank import JobRank, job_rank, meeting_place

TORCHRUN = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}
BATCH = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4"}
SRUN = BATCH | {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "4"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_SIZE": "3",
}
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1"}
MET = {"MASTER_ADDR": "n1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("environment", "rank", "local_rank", "world_size", "launcher"),
    [
        (TORCHRUN, 5, 1, 8, "torchrun"),
        (SRUN, 3, 1, 4, "srun"),
        (OPEN_MPI, 2, 0, 3, "Open MPI's mpirun"),
        (HYDRA, 1, 1, 2, "MPICH's mpiexec"),
        # torchrun and mpirun in an allocation, or started by srun
        (SRUN | TORCHRUN, 5, 1, 8, "torchrun"),
        (BATCH | OPEN_MPI, 2, 0, 3, "Open MPI's mpirun"),
        (BATCH | HYDRA, 1, 1, 2, "MPICH's mpiexec"),
        # srun with --mpi=pmi2
        (SRUN | {"PMI_RANK": "3", "PMI_SIZE": "4"}, 3, 1, 4, "srun"),
    ],
)
def test_the_nearest_launcher_says_the_rank(
    environment: dict[str, str], rank: int, local_rank: int, world_size: int, launcher: str
) -> None:
    assert job_rank(environment) == JobRank(rank, local_rank, world_size, launcher)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, "neither torchrun, srun, Open MPI's mpirun nor MPICH's mpiexec has started it"),
        (BATCH, "this process is no rank of a job"),
        ({"RANK": "0"}, "LOCAL_RANK in the environment is missing; torchrun sets RANK, LOCAL_RANK"),
        (TORCHRUN | {"RANK": "-1"}, "RANK in the environment is '-1'"),
        (TORCHRUN | {"RANK": "8"}, "torchrun says RANK=8, LOCAL_RANK=1, WORLD_SIZE=8"),
        (SRUN | {"SLURM_LOCALID": "x" * 99}, "SLURM_LOCALID in the environment is 'xxx"),
        (OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "9" * 99}, "OMPI_COMM_WORLD_SIZE in the environment"),
    ],
)
def test_what_is_no_rank_is_refused_in_a_line(environment: dict[str, str], words: str) -> None:
    with pytest.raises(InputError) as refused:
        job_rank(environment)
    assert words in str(refused.value)


def test_ranks_meet_where_torchrun_or_the_user_says() -> None:
    assert meeting_place(job_rank(TORCHRUN), TORCHRUN) == "env://"
    assert meeting_place(job_rank(SRUN), SRUN | MET) == "tcp://n1:29500"
    on_ipv6 = SRUN | MET | {"MASTER_ADDR": "fe80::1"}
    assert meeting_place(job_rank(SRUN), on_ipv6) == "tcp://[fe80::1]:29500"
    wrong: list[dict[str, Any]] = [{}, MET | {"MASTER_PORT": "0"}, MET | {"MASTER_ADDR": ""}]
    for said in wrong:
        with pytest.raises(InputError, match="srun doesn't say where ranks meet: set MASTER_ADDR"):
            meeting_place(job_rank(SRUN), SRUN | said)


def test_a_hosts_numbers_of_gpus_go_by_what_may_be_seen() -> None:
    assert visible_numbers({}, 3) == (0, 1, 2)
    assert visible_numbers({"CUDA_VISIBLE_DEVICES": "5, 2"}, 2) == (5, 2)
    assert visible_numbers({"CUDA_VISIBLE_DEVICES": "4,5,99"}, 2) == (4, 5)
    assert visible_numbers({"CUDA_VISIBLE_DEVICES": "GPU-nobody"}, 1) == (None,)


def numbers_in(places: list[Place]) -> list[int]:
    return [one.device for one in locations_in_job(places)]


def test_ranks_that_see_one_gpu_each_count_by_pci_address() -> None:
    alone = [Place("a", 0, "0000:9b:00.0"), Place("a", 0, "0000:1b:00.0"), Place("b", 0, "x")]
    assert numbers_in(alone) == [1, 0, 0]
    assert numbers_in([Place("a", 7, "0000:9b:00.0"), Place("a", 3, "0000:1b:00.0")]) == [7, 3]
    # two ranks on one GPU stay that
    assert numbers_in([Place("a", 0, "0000:1b:00.0"), Place("a", 0, "0000:1b:00.0")]) == [0, 0]
    with pytest.raises(InputError, match="rank 1 can't tell which GPU of a it has"):
        locations_in_job([Place("a", 0, "0000:1b:00.0"), Place("a", None)])
