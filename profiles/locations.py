"""Where ranks sit: on which device of which host. A plan's ranks find theirs in a job by it."""

from collections import Counter
from collections.abc import Iterable, Sequence

from pydantic import Field

from ditplan.profiles.bounds import DeviceNumber, RankNumber
from ditplan.profiles.cluster import ClusterProfile
from ditplan.profiles.errors import Command, InputError, Setting, one_line
from ditplan.profiles.record import FrozenModel


class Location(FrozenModel):
    """A rank, its host's name, and the number of its device there: as CUDA counts GPUs without
    `CUDA_VISIBLE_DEVICES`, or CPU ranks one after the other.
    """

    rank: RankNumber
    host: str = Field(min_length=1)
    device: DeviceNumber


def locations_of(cluster: ClusterProfile, ranks: Iterable[int]) -> tuple[Location, ...]:
    """Where some of a cluster's ranks sit, ascending."""
    everywhere = [(host.name, device) for host in cluster.hosts for device in host.device_numbers]
    return tuple(
        Location(rank=rank, host=everywhere[rank][0], device=everywhere[rank][1])
        for rank in sorted(ranks)
    )


def why_no_locations(locations: Sequence[Location], ranks: Iterable[int]) -> str | None:
    """Why these aren't the locations of these ranks, in a sentence; None if they are."""
    named, needed = [one.rank for one in locations], sorted(ranks)
    if sorted(named) != needed:
        return (
            f"the locations must name the ranks {numbers(needed)} of the placement once each, "
            f"they name {numbers(named)}"
        )
    seats = Counter((one.host.lower(), one.device) for one in locations)
    (host, device), count = seats.most_common(1)[0]
    if count > 1:
        return f"{count} ranks are located on device {device} of {one_line(host, 60)}; one can be"
    return None


def places_of(locations: Iterable[Location]) -> list[str]:
    """Such as `node0: devices 0, 2`, for each host."""
    return [
        f"{one_line(own[0].host, 60)}: device{'s' if len(own) > 1 else ''} "
        f"{numbers(_numbers_of(own))}"
        for own in _by_host(locations).values()
    ]


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
    theirs, ours = _by_host(planned), _by_host(job)
    pairs = _hosts_by_name(theirs, ours)
    absent = [host for host in theirs if host not in pairs]
    free = [host for host in ours if host not in pairs.values()]
    for host in absent:
        wanted = _numbers_of(theirs[host])
        alike = (
            other
            for other in free
            if (_numbers_of(ours[other]) == wanted)
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
            else _numbers_of(there) == _numbers_of(locations)
        )
        if not is_so:
            raise _other_devices(host, locations, pairs[host], there)
        in_turn = zip(_sorted(locations), _sorted(there), strict=True)
        seats |= {one.rank: other.rank for one, other in in_turn}
    return seats


def numbers(values: Iterable[int]) -> str:
    """Such as `0, 2, 4`; of many the first ones and the last."""
    texts = [str(value) for value in values]
    return ", ".join(texts if len(texts) <= 12 else [*texts[:10], "...", texts[-1]])


def _by_host(locations: Iterable[Location]) -> dict[str, list[Location]]:
    found: dict[str, list[Location]] = {}
    for one in locations:
        found.setdefault(one.host.lower(), []).append(one)
    return found


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


def _numbers_of(locations: Iterable[Location]) -> list[int]:
    return sorted(one.device for one in locations)


def _other_devices(
    host: str, planned: Sequence[Location], other: str, there: Sequence[Location]
) -> InputError:
    devices = numbers(_numbers_of(planned))
    found = f"on devices {numbers(_numbers_of(there))} of {other}" if there else "nowhere else"
    return InputError(
        f"the plan has {len(planned)} rank(s) on {one_line(host, 60)}, devices {devices}; this job "
        f"has {one_line(found, 100)}: start as many there, with CUDA_VISIBLE_DEVICES="
        f"{devices.replace(' ', '')}, or tune for this job's hosts: `",
        Command("tune", (Setting("hosts", "FILE"),)),
        "`",
    )
