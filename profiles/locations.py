"""Where ranks sit: on which device of which host."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from ditplan.profiles.bounds import DeviceNumber, RankNumber
from ditplan.profiles.errors import one_line
from ditplan.profiles.record import FrozenModel, shortened

if TYPE_CHECKING:
    from ditplan.profiles.cluster import ClusterProfile


class Location(FrozenModel):
    """A rank, its host's name, and the number of its device there: as CUDA counts GPUs without
    `CUDA_VISIBLE_DEVICES`, or CPU ranks one after the other.
    """

    rank: RankNumber
    host: str = Field(min_length=1)
    device: DeviceNumber


def locations_of(cluster: "ClusterProfile", ranks: Iterable[int]) -> tuple[Location, ...]:
    """Where some of a cluster's ranks sit, ascending."""
    everywhere = [(host.name, device) for host in cluster.hosts for device in host.device_numbers]
    return tuple(
        Location(rank=rank, host=everywhere[rank][0], device=everywhere[rank][1])
        for rank in sorted(ranks)
    )


def why_not_located(placement: Sequence[int], locations: Sequence[Location]) -> str | None:
    """Why nobody can tell where a plan's ranks are, in a sentence; None if it is said: by their
    locations, or by being the first of a job that has no others.
    """
    if not locations:
        if max(placement) < len(placement):
            return None
        return (
            f"the placement must name the ranks 0 to {len(placement) - 1} of the mesh once each, "
            f"it is {shortened(list(placement))}; other ranks need `locations`"
        )
    named, needed = sorted(one.rank for one in locations), sorted(placement)
    if named != needed:
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
        f"{numbers(device_numbers(own))}"
        for own in by_host(locations).values()
    ]


def numbers(values: Iterable[int]) -> str:
    """Such as `0, 2, 4`; of many the first ones and the last."""
    texts = [str(value) for value in values]
    return ", ".join(texts if len(texts) <= 12 else [*texts[:10], "...", texts[-1]])


def by_host(locations: Iterable[Location]) -> dict[str, list[Location]]:
    """Locations by their host's name, in small letters."""
    found: dict[str, list[Location]] = {}
    for one in locations:
        found.setdefault(one.host.lower(), []).append(one)
    return found


def device_numbers(locations: Iterable[Location]) -> list[int]:
    """The numbers of their devices, ascending."""
    return sorted(one.device for one in locations)
