"""Which rank of a job a process is, by what its launcher says in the environment."""

from collections.abc import Mapping
from dataclasses import dataclass

from ditplan.profiles.bounds import MOST_RANKS
from ditplan.profiles.errors import InputError, one_line


@dataclass(frozen=True)
class Launcher:
    """What starts a job's processes, and the names of what it tells them: rank, place on the host,
    ranks. `mark` is there in such a process alone.
    """

    name: str
    rank: str
    local_rank: str
    world_size: str
    mark: str


LAUNCHERS = (
    Launcher("torchrun", "RANK", "LOCAL_RANK", "WORLD_SIZE", "RANK"),
    Launcher(
        "Open MPI's mpirun",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_RANK",
    ),
    # srun has PMI_RANK too, with some of its --mpi
    Launcher("MPICH's mpiexec", "PMI_RANK", "MPI_LOCALRANKID", "PMI_SIZE", "MPI_LOCALRANKID"),
    # a batch script itself has SLURM_PROCID, and is no step
    Launcher(
        "srun", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_TASKS"
    ),
)
"""The nearest to the process first: torchrun may be started by srun, or mpirun in its job."""


@dataclass(frozen=True)
class JobRank:
    """A process' rank of `world_size`, its place among those of its host, and who started it."""

    rank: int
    local_rank: int
    world_size: int
    launcher: str


def job_rank(environment: Mapping[str, str]) -> JobRank:
    """What the launcher says.

    Raises:
        InputError: there is none, or it says what can't be.
    """
    found = next((one for one in LAUNCHERS if one.mark in environment), None)
    if found is None:
        raise InputError(
            "this process is no rank of a job: neither torchrun, srun, Open MPI's mpirun nor "
            "MPICH's mpiexec has started it; start it as `torchrun --nproc-per-node N script.py`"
        )
    rank, local_rank, world_size = (
        _number(found, name, environment)
        for name in (found.rank, found.local_rank, found.world_size)
    )
    if not (rank < world_size <= MOST_RANKS and local_rank < world_size):
        raise InputError(
            f"{found.name} says {found.rank}={rank}, {found.local_rank}={local_rank}, "
            f"{found.world_size}={world_size}: ranks count from 0 to {world_size - 1}"
        )
    return JobRank(rank, local_rank, world_size, found.name)


def meeting_place(job: JobRank, environment: Mapping[str, str]) -> str:
    """Where the ranks of a job meet, as torch has it.

    Raises:
        InputError: the launcher doesn't say, and nobody else has.
    """
    if job.launcher == "torchrun":
        return "env://"
    address, port = (environment.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT"))
    if not address or not (port.isdecimal() and 0 < int(port) < 2**16):
        raise InputError(
            f"{job.launcher} doesn't say where ranks meet: set MASTER_ADDR, the address of rank "
            "0's host, and MASTER_PORT, a port that is free there, for all ranks"
        )
    return f"tcp://[{address}]:{port}" if ":" in address else f"tcp://{address}:{port}"


def _number(launcher: Launcher, name: str, environment: Mapping[str, str]) -> int:
    said = environment.get(name, "")
    if not (said.isdecimal() and len(said) < 9):
        text = one_line(repr(said), 40) if said else "missing"
        raise InputError(
            f"{name} in the environment is {text}; {launcher.name} sets {launcher.rank}, "
            f"{launcher.local_rank} and {launcher.world_size}, leave them as they are"
        )
    return int(said)
