"""The ranks of a job that a plan's ranks are, by host and device, in whatever order it was
started.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from ditplan.profiles.errors import Command, InputError, Setting, one_line
from ditplan.profiles.host_choice import ChosenHost, HostChoice
from ditplan.profiles.locations import Location, by_host, device_numbers, numbers
from ditplan.profiles.plan import ExecutionPlan


def seated(plan: ExecutionPlan, seats: Mapping[int, int]) -> ExecutionPlan:
    """A plan for other numbers of its ranks: `seats` has the new one of each of its own. Runner-ups
    keep theirs.
    """
    old = plan.configuration
    places = sorted(range(len(old.ranks)), key=lambda place: seats[old.ranks[place]])
    locations = (one.model_copy(update={"rank": seats[one.rank]}) for one in plan.locations)
    placement = tuple(seats[rank] for rank in old.placement)
    return plan.model_copy(
        update={
            "configuration": replace(old, placement=placement),
            "fingerprint": plan.fingerprint.in_order(places),
            "locations": tuple(sorted(locations, key=lambda one: one.rank)),
        }
    )


def on_its_own(plan: ExecutionPlan) -> ExecutionPlan:
    """The plan for a job of its ranks alone, which are numbered as they ascend."""
    return seated(plan, {rank: number for number, rank in enumerate(plan.configuration.ranks)})


def on_hosts(plan: ExecutionPlan, hosts: HostChoice) -> tuple[ExecutionPlan, HostChoice]:
    """The plan for a job of its ranks alone, as they are started on hosts one after the other, and
    the hosts with the devices that it names. A plan that names other numbers of hosts, or more
    devices than they give, takes what they have in order.
    """
    theirs = by_host(plan.locations)
    ours = {one.host.name.lower(): one for one in hosts.hosts}
    pairs = _hosts_by_name(theirs, ours)
    free = [name for name in ours if name not in pairs.values()]
    absent = [name for name in theirs if name not in pairs]
    if not theirs or len(absent) > len(free):
        return on_its_own(plan), hosts
    pairs |= dict(zip(absent, free, strict=False))
    chosen, seats = list[ChosenHost](), dict[int, int]()
    for name, own in theirs.items():
        one, devices = ours[pairs[name]], tuple(location.device for location in own)
        if not _has(one, devices):
            return on_its_own(plan), hosts
        chosen.append(ChosenHost(replace(one.host, slots=len(devices)), devices))
        seats |= {location.rank: len(seats) + i for i, location in enumerate(own)}
    return seated(plan, seats), replace(hosts, hosts=tuple(chosen))


def _has(host: ChosenHost, devices: Sequence[int]) -> bool:
    """Whether a host gives these devices, as far as is said."""
    if host.devices is not None:
        return set(devices) <= set(host.devices)
    return host.host.slots is None or max(devices) < host.host.slots


def seats_in_job(
    planned: Sequence[Location], job: Sequence[Location], *, by_number: bool
) -> dict[int, int]:
    """The job's rank for each rank of a plan, by host and device, in whatever order the job was
    started; without `by_number` devices of a host are alike and taken in turn, as CPU ranks are.

    Hosts go by their names, with or without their domains. Hosts of other names stand in for those
    that aren't there, one for one, where they have ranks on the same devices.

    Raises:
        InputError: the job has other ranks; says which, and on which devices to start them.
    """
    theirs, ours = by_host(planned), by_host(job)
    pairs = _hosts_by_name(theirs, ours)
    absent = [host for host in theirs if host not in pairs]
    free = [host for host in ours if host not in pairs.values()]
    for host in absent:
        wanted = device_numbers(theirs[host])
        alike = (
            other
            for other in free
            if (device_numbers(ours[other]) == wanted)
            or (not by_number and len(ours[other]) == len(wanted))
        )
        pairs[host] = next(alike, free[0] if free else "")
        if pairs[host]:
            free.remove(pairs[host])
    seats: dict[int, int] = {}
    for host, locations in theirs.items():
        there = ours.get(pairs[host], [])
        is_so = (
            len(there) == len(locations)
            if not by_number
            else device_numbers(there) == device_numbers(locations)
        )
        if not is_so:
            raise _other_devices(host, locations, pairs[host], there)
        in_turn = zip(_sorted(locations), _sorted(there), strict=True)
        seats |= {one.rank: other.rank for one, other in in_turn}
    return seats


def _hosts_by_name(theirs: Iterable[str], ours: Iterable[str]) -> dict[str, str]:
    """The hosts of the plan that are among the job's, by whole names first."""
    pairs = {host: host for host in theirs if host in set(ours)}
    short = {other.partition(".")[0]: other for other in ours if other not in pairs.values()}
    for host in theirs:
        if host not in pairs and (other := short.pop(host.partition(".")[0], None)):
            pairs[host] = other
    return pairs


def _sorted(locations: Iterable[Location]) -> list[Location]:
    return sorted(locations, key=lambda one: (one.device, one.rank))


def _other_devices(
    host: str, planned: Sequence[Location], other: str, there: Sequence[Location]
) -> InputError:
    devices = numbers(device_numbers(planned))
    found = f"on devices {numbers(device_numbers(there))} of {other}" if there else "nowhere else"
    return InputError(
        f"the plan has {len(planned)} rank(s) on {one_line(host, 60)}, devices {devices}; this job "
        f"has {one_line(found, 100)}: start as many there, with CUDA_VISIBLE_DEVICES="
        f"{devices.replace(' ', '')}, or tune for this job's hosts: `",
        Command("tune", (Setting("hosts", "FILE"),)),
        "`",
    )
