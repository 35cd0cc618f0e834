"""A rank of a job that somebody else started: its context, and where all of the job's ranks are."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from ditplan.profiles.errors import InputError
from ditplan.profiles.job_seats import seated, seats_in_job
from ditplan.profiles.locations import Location
from ditplan.profiles.plan import ExecutionPlan
from ditplan.runtime.groups import GROUP_TIMEOUT, GroupCache, RankContext
from ditplan.runtime.ranks.device_numbers import number_of_gpu
from ditplan.runtime.ranks.devices import host_name
from ditplan.runtime.ranks.environment import NO_MULTICAST, environment, set_where_unset
from ditplan.runtime.ranks.gpu_inventory import gpu_of
from ditplan.runtime.ranks.job_rank import JobRank, job_rank, meeting_place


@dataclass(frozen=True)
class Place:
    """Where a rank is: its host, the host's number of its GPU (of a CPU rank its place on the
    host), and the GPU's PCI address where that is known.
    """

    host: str
    number: int | None
    pci_address: str | None = None


def attach_to_job() -> RankContext:
    """The context of a rank that torchrun, srun, mpirun or mpiexec started: on a GPU of its own if
    there is one, else on the CPU.

    Initializes the default process group if nobody has.

    Raises:
        InputError: the process is no rank of a job, sees too few GPUs, or doesn't know where the
            ranks meet.
    """
    job = job_rank(environment())
    set_where_unset(*NO_MULTICAST)
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = _gpu_of(job, torch.cuda.device_count())
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        bound = device if device.type == "cuda" else None
        dist.init_process_group(
            "nccl" if bound else "gloo",
            init_method=meeting_place(job, environment()),
            timeout=GROUP_TIMEOUT,
            device_id=bound,
            rank=job.rank,
            world_size=job.world_size,
        )
    return RankContext(job.rank, job.world_size, device, GroupCache(job.rank, job.world_size))


def seated_in_job(plan: ExecutionPlan, context: RankContext) -> ExecutionPlan:
    """The plan for this job's ranks: each is where it was planned, by host and GPU, in whatever
    order they were started. A plan that says no locations stays as it is. Every rank calls it.

    Raises:
        InputError: the same on every rank: the job is on other devices.
    """
    if not plan.locations:
        return plan
    on_gpus = context.device.type == "cuda"
    found: list[Any] = [place_of(context)]
    if context.world_size > 1:
        mine = found[0]
        found = [None] * context.world_size
        dist.all_gather_object(found, mine)
    return seated(plan, seats_in_job(plan.locations, locations_in_job(found), by_number=on_gpus))


def place_of(context: RankContext) -> Place:
    """Where this rank is."""
    known = environment()
    host = host_name(known)
    if context.device.type != "cuda":
        return Place(host, context.rank)
    gpu = gpu_of(str(torch.cuda.get_device_properties(context.device).uuid))
    address = None if gpu is None else gpu.pci_address
    return Place(host, number_of_gpu(context.device, known), address)


def locations_in_job(places: Sequence[Place]) -> tuple[Location, ...]:
    """The locations of a job's ranks, in their order.

    Where each rank of a host sees its own GPU alone all numbers are 0: then GPUs count by their PCI
    addresses, as far as the job has them.
    """
    counts = Counter((one.host, one.number) for one in places)
    doubtful = {
        one.host for one in places if one.number is None or counts[one.host, one.number] > 1
    }
    found = []
    for rank, place in enumerate(places):
        if place.host in doubtful:
            addresses = sorted(
                {one.pci_address for one in places if one.host == place.host and one.pci_address}
            )
            if place.pci_address not in addresses:
                raise InputError(
                    f"rank {rank} can't tell which GPU of {place.host} it has: start it with "
                    "numbers in CUDA_VISIBLE_DEVICES"
                )
            place = replace(place, number=addresses.index(place.pci_address))
        assert place.number is not None
        found.append(Location(rank=rank, host=place.host, device=place.number))
    return tuple(found)


def _gpu_of(job: JobRank, count: int) -> torch.device:
    """The GPU of a rank: by its place on the host, or the only one that it sees."""
    number = job.local_rank if count > 1 else 0
    if number >= count:
        raise InputError(
            f"rank {job.rank} is number {job.local_rank} of its host, where CUDA may see {count} "
            "GPUs; start as many ranks there"
        )
    return torch.device("cuda", number)
